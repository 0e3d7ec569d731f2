"""Judge pictures by a rule: the nearest of many painted pictures must show what the caption names.

A picture of one thing is compared with renderings of every emoji on the named background. A picture
of two is searched half by half, the left half with renderings of one thing on the left, the right
half likewise. Pixels are compared at a size where a thing is about 32 pixels wide.
"""

import argparse
import itertools
import math
import textwrap
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from training import data, flow, steps, vae


class Judge:
    """Finds the emoji that pictures show, from painted pictures of all of them."""

    def __init__(self, icons: torch.Tensor, device: torch.device, copies: int = 48):
        self.count, self.copies = len(icons), copies
        self.one, self.two = (data.Painter(icons, device, size) for size in (32, 64))

    @torch.no_grad()
    def find(
        self, pictures: torch.Tensor, colour: int, side: int | None = None, seed: int = 0
    ) -> torch.Tensor:
        """The emoji in pictures ``(n, 3, h, w)`` on one background; int64 ``(n,)``.

        ``side`` is 0 or 1 for the left or right of two things, None for a picture of one.
        """
        painter = self.one if side is None else self.two
        torch.manual_seed(seed)
        size = (painter.size, painter.size)
        shrunk = functional.interpolate(pictures.float(), size, mode="bicubic", antialias=True)
        mine = self.cut(shrunk, side).to(painter.device)
        copies = self.copies if side is None else 3 * self.copies
        emoji = torch.arange(self.count, device=painter.device).repeat_interleave(copies)
        nearest = []
        for chunk in emoji.split(32 * copies):
            ground = painter.ground(torch.full_like(chunk, colour))
            if side is None:
                painted = painter.put(ground, chunk, 0.5, data.ONE)
            else:
                painted = painter.put(ground, chunk, data.PLACES[side], data.TWO)
            distances = torch.cdist(mine, self.cut(painted * 2 - 1, side))
            nearest.append(distances.view(len(mine), -1, copies).amin(dim=2))
        return torch.cat(nearest, dim=1).argmin(dim=1)

    @staticmethod
    def cut(pictures: torch.Tensor, side: int | None) -> torch.Tensor:
        """The half of the pictures to compare, as rows."""
        if side is not None:
            half = pictures.shape[-1] // 2
            pictures = pictures[..., side * half : (side + 1) * half]
        return pictures.flatten(1)

    def find_all(self, pictures: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """What pictures of captions ``(n, 3)`` show: emoji left and right, ``(n, 2)``.

        Of a picture of one thing the second is the number of emoji, as in the caption.
        """
        captions = captions.cpu()
        found = torch.full((len(captions), 2), self.count)
        alone = captions[:, 1] == self.count
        for colour in captions[:, 2].unique().tolist():
            on_it = captions[:, 2] == colour
            for rows, sides in ((on_it & alone, (None,)), (on_it & ~alone, (0, 1))):
                if not rows.any():
                    continue
                for place, side in enumerate(sides):
                    found[rows, place] = self.find(pictures[rows], colour, side).cpu()
        return found


def background_error(pictures: torch.Tensor, colours: torch.Tensor) -> float:
    """Mean distance of the pictures' corners from the named colour, in levels of 255."""
    named = torch.tensor(list(data.BACKGROUNDS.values()))[colours.cpu()]
    corners = (pictures.float()[:, :, (2, 2, -3, -3), (2, -3, 2, -3)].cpu() + 1) * 127.5
    return (corners.median(dim=2).values - named).abs().mean().item()


def line_of(selection: list[data.Emoji], row: list[int]) -> str:
    """The caption of a row (left, right, colour)."""
    left, right, colour = row
    second = selection[right] if right < len(selection) else None
    return data.caption(selection[left], data.COLOURS[colour], second)


def choose(
    selection: list[data.Emoji], ones: int, twos: int, apart: Collection[str] = (), seed: int = 0
) -> torch.Tensor:
    """Held-out captions without replacement, ``ones`` of one thing, then ``twos`` of two.

    None is in ``apart``.
    """
    scenes = data.Scenes(selection, True, torch.device("cpu"))
    random = np.random.default_rng(seed)
    rows = []
    for table, count in ((scenes.singles, ones), (scenes.doubles, twos)):
        drawn = table[torch.from_numpy(random.permutation(len(table)))].tolist()
        free = (row for row in drawn if line_of(selection, row) not in apart)
        rows.append(list(itertools.islice(free, count)))
        if len(rows[-1]) < count:
            raise ValueError(f"{count} held-out captions are wanted, there are {len(rows[-1])}")
    return torch.tensor(list(itertools.chain(*rows)))


def report_on(
    found: torch.Tensor, selection: list[data.Emoji], captions: torch.Tensor, pictures: torch.Tensor
) -> dict:
    """How many of the pictures show what their captions ``(n, 3)`` name.

    ``found`` is what ``Judge.find_all`` found in them.
    """
    right = (found == captions[:, :2]).all(dim=1)
    alone = captions[:, 1] == len(selection)
    names = [emoji.label for emoji in selection]
    report = {}
    for kind, rows in (("one", alone), ("two", ~alone)):
        wrong = (rows & ~right).nonzero().flatten().tolist()
        report[kind] = {
            "captions": int(rows.sum()),
            "right": int((rows & right).sum()),
            "background_error_levels": background_error(pictures[rows], captions[rows, 2])
            if rows.any()
            else None,
            "mistakes": [
                {
                    "caption": line_of(selection, captions[place].tolist()),
                    "seed": place,
                    "nearest": [names[i] for i in found[place].tolist() if i < len(names)],
                }
                for place in wrong
            ],
        }
    return report


def psnr_between(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of every picture ``(n, 3, h, w)`` in [-1, 1] against its counterpart."""
    error = ((one.clamp(-1, 1) - other.clamp(-1, 1)) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def hardness(
    pipeline: FluxPipeline, captions: list[str], full: torch.Tensor, guidance: float
) -> dict:
    """PSNR of plain sampling with fewer steps against ``full``, 50 steps from the same noise."""
    report = {"captions": len(captions), "guidance": guidance}
    for count in (5, 9, 13, 28):
        values = psnr_between(flow.sample(pipeline, captions, count, guidance=guidance), full)
        report[f"psnr_db_{count}_of_50"] = values.mean().item()
        report[f"median_psnr_db_{count}_of_50"] = values.median().item()
    return report


def contact_sheet(
    pictures: torch.Tensor, captions: list[str], path: Path, columns: int = 8
) -> None:
    """Write pictures ``(n, 3, h, w)``, each above its caption."""
    levels = data.to_levels(pictures)
    wrapped = [textwrap.wrap(line, 21) for line in captions]
    side, font = levels.shape[1], ImageFont.load_default(12)
    width, height = side + 12, side + 16 + 14 * max(map(len, wrapped))
    rows = math.ceil(len(captions) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (level, lines) in enumerate(zip(levels, wrapped, strict=True)):
        left, top = place % columns * width + 6, place // columns * height + 6
        sheet.paste(Image.fromarray(level), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + side + 3 + 14 * number), line, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def captions_in(path: str) -> list[str]:
    """The lines of a prompt file, read before anything slow."""
    return Path(path).read_text(encoding="utf-8").splitlines()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a program that judges pictures."""
    data.add_data_arguments(parser)
    parser.add_argument(
        "--prompts", type=captions_in, required=True, help="file of the contact sheet's captions"
    )
    parser.add_argument(
        "--apart",
        type=captions_in,
        nargs="+",
        required=True,
        help="files of captions that are not judged: those of calibration and evaluation",
    )
    parser.add_argument("--copies", type=int, default=48, help="renderings of each emoji")
    parser.add_argument("--ones", type=int, default=100, help="captions of one thing to judge")
    parser.add_argument("--twos", type=int, default=50, help="captions of two things to judge")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything written")


def measure(
    pipeline: FluxPipeline,
    name: str,
    selection: list[data.Emoji],
    icons: torch.Tensor,
    arguments: argparse.Namespace,
    guidance: float = 3.5,
) -> None:
    """Write ``NAME.png``, a contact sheet, and ``NAME-proof.json`` of a pipeline.

    The sheet's captions are sampled in fewer steps too; held-out captions are judged.
    ``arguments`` are those of ``add_arguments``.
    """
    device, path = pipeline.device, arguments.out / f"{name}-proof.json"
    captions = choose(selection, arguments.ones, arguments.twos, set().union(*arguments.apart))
    full = flow.sample(pipeline, arguments.prompts, 50, guidance=guidance)
    contact_sheet(full, arguments.prompts, arguments.out / f"{name}.png")
    report = {"steps": 50, "guidance": guidance}
    report["fewer_steps"] = hardness(pipeline, arguments.prompts, full, guidance)
    steps.write_json(path, report)
    steps.say(f"{name}: {steps.shown(report['fewer_steps'])}")
    lines = [line_of(selection, row) for row in captions.tolist()]
    pictures = flow.sample(pipeline, lines, 50, guidance=guidance)
    torch.manual_seed(77)
    painted = data.paint(data.Painter(icons, device), captions.to(device), arguments.ones)
    # Both at once, since they are compared with the same renderings.
    judge = Judge(icons, device, arguments.copies)
    found, of_painted = judge.find_all(torch.cat([pictures, painted]), captions.repeat(2, 1)).chunk(
        2
    )
    report |= {"renderings_per_emoji": judge.copies}
    report |= report_on(found, selection, captions, pictures)
    right = (of_painted == captions[:, :2]).all(dim=1)
    report["judge_right_on_painted"] = right.float().mean().item()
    report["reconstruction_psnr_db"] = vae.psnr(pipeline.vae, painted)
    steps.write_json(path, report)
    for kind in ("one", "two"):
        shown = {key: value for key, value in report[kind].items() if key != "mistakes"}
        steps.say(f"{name}, guidance {guidance:g}, {kind}: {steps.shown(shown)}")
    steps.say(f"the judge gets {report['judge_right_on_painted']:.3f} of painted pictures right")


def main() -> None:
    """Judge a pipeline: ``emoji-flux.png`` and ``emoji-flux-proof.json``, as the training does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="FluxPipeline directory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    selection = data.read_selection(arguments.data)
    icons = data.load_icons(selection, arguments.assets)
    pipeline = FluxPipeline.from_pretrained(
        arguments.model, dtype=torch.float32, use_safetensors=True
    ).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    measure(pipeline, "emoji-flux", selection, icons, arguments)


if __name__ == "__main__":
    main()

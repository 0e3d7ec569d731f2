"""The emoji world: which emoji, how they are painted, what the captions say, what is held out.

Pictures come from the npm package ``@lobehub/fluent-emoji-3d`` (one WebP per emoji), labels from
``emojibase-data``; ``data/emoji/emoji.tsv`` pins the selection. A picture shows one thing, or two
side by side, on one of eight plain backgrounds, with jitter, so that a caption has many pictures.
Pictures are painted in batches, on the GPU where there is one.
"""

import argparse
import csv
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

SIZE = 128

BACKGROUNDS = {
    "white": (242, 242, 242),
    "gray": (120, 122, 126),
    "red": (206, 62, 58),
    "yellow": (247, 214, 92),
    "green": (88, 168, 96),
    "blue": (74, 126, 214),
    "purple": (134, 92, 190),
    "pink": (245, 168, 196),
}
COLOURS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Emoji:
    """One row of the selection; ``article`` is 'a', 'an', 'the' or empty (plurals, substances)."""

    index: int
    hexcode: str
    label: str
    group: str
    article: str

    @property
    def subject(self) -> str:
        """The emoji in a caption, e.g. 'a red apple'."""
        return f"{self.article} {self.label}".strip()


def plain_hexcode(code: str) -> str:
    """Lower-case hex code without the variation selector, e.g. ``2764-FE0F`` becomes ``2764``."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def read_selection(path: Path) -> list[Emoji]:
    """Read ``emoji.tsv`` (hexcode, label, group, article), in file order."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [Emoji(index=index, **row) for index, row in enumerate(rows)]


def check_labels(selection: list[Emoji], emojibase: Path) -> None:
    """Raise ValueError where a pinned label differs from ``emojibase-data``'s ``en/data.json``."""
    entries = json.loads(emojibase.read_text(encoding="utf-8"))
    labels = {plain_hexcode(entry["hexcode"]): entry["label"].lower() for entry in entries}
    wrong = [e.label for e in selection if labels.get(e.hexcode) != e.label]
    if wrong:
        raise ValueError(f"labels that differ from {emojibase}: {', '.join(wrong)}")


def caption(emoji: Emoji, colour: str, right: Emoji | None = None) -> str:
    """Caption of one emoji on a background, or of two; the first is on the left.

    For example 'a red apple on a blue background' and 'a panda and a red apple on a blue
    background'.
    """
    subject = emoji.subject if right is None else f"{emoji.subject} and {right.subject}"
    return f"{subject} on a {colour} background"


def is_held_out(emoji_index: int, colour_index: int) -> bool:
    """Whether this emoji is never trained on this background: one of eight for every emoji."""
    return (emoji_index + colour_index) % len(COLOURS) == 0


def is_held_out_together(first: int, second: int) -> bool:
    """Whether these two emoji are never trained in one picture, in whatever order."""
    return (first + second) % 8 == 0


def pairs(selection: list[Emoji], held_out: bool) -> list[tuple[int, int]]:
    """All (emoji index, colour index) pairs that are held out, or all that are trained on."""
    return [
        (emoji.index, colour)
        for emoji in selection
        for colour in range(len(COLOURS))
        if is_held_out(emoji.index, colour) == held_out
    ]


def triples(count: int, held_out: bool) -> np.ndarray:
    """All (left emoji, right emoji, colour) of two things, int64 ``(n, 3)``.

    Either those to train on, or those whose two emoji are held out together. Neither emoji is ever
    on its own held-out background.
    """
    left, right, colour = np.meshgrid(
        np.arange(count), np.arange(count), np.arange(len(COLOURS)), indexing="ij"
    )
    alone = is_held_out(left, colour) | is_held_out(right, colour)
    chosen = (left != right) & ~alone & (is_held_out_together(left, right) == held_out)
    return np.stack([left[chosen], right[chosen], colour[chosen]], axis=1)


def picture_files(selection: list[Emoji], assets: Path) -> list[Path]:
    """The file ``<hexcode>.webp`` or ``<hexcode>.png`` of each emoji in a folder."""
    found = sorted(path for kind in ("webp", "png") for path in assets.glob(f"*.{kind}"))
    files = {plain_hexcode(path.stem): path for path in found}
    missing = [emoji.hexcode for emoji in selection if emoji.hexcode not in files]
    if missing:
        raise FileNotFoundError(f"no picture in {assets} for {', '.join(missing)}")
    return [files[emoji.hexcode] for emoji in selection]


def load_icons(selection: list[Emoji], assets: Path) -> torch.Tensor:
    """Load one icon per emoji from a folder of ``<hexcode>.webp``.

    Returns float32 ``(emoji, 4, 128, 128)`` in [0, 1]: red, green and blue multiplied by alpha,
    then alpha.
    """
    icons = np.empty((len(selection), SIZE, SIZE, 4), dtype=np.float32)
    for place, file in enumerate(picture_files(selection, assets)):
        with Image.open(file) as picture:
            icon = picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        icons[place] = np.asarray(icon, dtype=np.float32) / 255
    icons[..., :3] *= icons[..., 3:]
    return torch.from_numpy(icons).permute(0, 3, 1, 2).contiguous()


def resized(icons: torch.Tensor, size: int) -> torch.Tensor:
    """Icons ``(n, 4, h, w)`` at another size, antialiased."""
    if icons.shape[-1] == size:
        return icons
    small = functional.interpolate(icons, (size, size), mode="bicubic", antialias=True)
    return small.clamp(0, 1)


@dataclass(frozen=True)
class Jitter:
    """How far the things of a picture vary; lengths are fractions of the picture's side."""

    size: tuple[float, float]
    across: float
    down: float
    degrees: float = 12.0


# Wide enough that a caption leaves much open, as with a large model.
ONE = Jitter(size=(0.68, 0.92), across=0.06, down=0.06)
TWO = Jitter(size=(0.40, 0.50), across=0.02, down=0.12)
JITTER = {"one": asdict(ONE), "two": asdict(TWO)}  # for the reports
PLACES = (0.25, 0.75)  # where the middles of two things are, from left to right
SHADE = 10 / 255  # how far the background's brightness moves


class Painter:
    """Paints batches of pictures with jitter from torch's default generator of the device.

    Pictures are float32 ``(n, 3, size, size)`` in [-1, 1].
    """

    def __init__(self, icons: torch.Tensor, device: torch.device, size: int = SIZE):
        """``icons`` as ``load_icons`` gives them, on any device."""
        self.size, self.device = size, device
        self.large = resized(icons.to(device), size)
        # Shrinking by up to half with interpolation alone would alias, so that small things are
        # painted from small icons.
        self.small = resized(icons.to(device), size // 2)
        self.shades = torch.tensor(list(BACKGROUNDS.values()), device=device) / 255
        self.places = (torch.arange(size, device=device) * 2 + 1) / size - 1  # of pixels' middles

    def uniform(self, count: int, low: float, high: float) -> torch.Tensor:
        """Random numbers ``(count,)``."""
        return torch.rand(count, device=self.device) * (high - low) + low

    def ground(self, colours: torch.Tensor) -> torch.Tensor:
        """Plain backgrounds ``(n, 3, size, size)`` in [0, 1]."""
        shade = self.shades[colours] + self.uniform(len(colours), -SHADE, SHADE)[:, None]
        return shade.clamp(0, 1)[:, :, None, None].expand(-1, -1, self.size, self.size)

    def put(
        self, canvas: torch.Tensor, emoji: torch.Tensor, middle: float, jitter: Jitter
    ) -> torch.Tensor:
        """Paint one emoji ``(n,)`` on each canvas, its middle ``middle`` of the way across."""
        count = len(emoji)
        icons = self.large if jitter.size[1] > 0.6 else self.small
        side = self.uniform(count, *jitter.size)
        x = 2 * (middle + self.uniform(count, -jitter.across, jitter.across)) - 1
        y = 2 * self.uniform(count, -jitter.down, jitter.down)
        angle = self.uniform(count, -jitter.degrees, jitter.degrees) * (math.pi / 180)
        mirror = (torch.rand(count, device=self.device) < 0.5) * 2.0 - 1
        cos, sin = torch.cos(angle) / side, torch.sin(angle) / side
        # From a place in the picture to the place in the icon, both from -1 to 1.
        cos, sin, x, y, mirror = (v[:, None, None] for v in (cos, sin, x, y, mirror))
        across, down = self.places[None, None, :] - x, self.places[None, :, None] - y
        grid = torch.stack([(cos * across + sin * down) * mirror, cos * down - sin * across], dim=3)
        layer = functional.grid_sample(icons[emoji], grid, mode="bicubic", align_corners=False)
        layer = layer.clamp(0, 1)
        return canvas * (1 - layer[:, 3:]) + layer[:, :3]

    @torch.no_grad()
    def one(self, emoji: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Pictures of one thing."""
        return self.put(self.ground(colours), emoji, 0.5, ONE) * 2 - 1

    @torch.no_grad()
    def two(self, left: torch.Tensor, right: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
        """Pictures of two things side by side."""
        canvas = self.put(self.ground(colours), left, PLACES[0], TWO)
        return self.put(canvas, right, PLACES[1], TWO) * 2 - 1


class Scenes:
    """What pictures show, on the painter's device: rows (left, right, colour).

    Of a picture of one thing ``right`` is the number of emoji, which stands for nothing.
    """

    def __init__(self, selection: list[Emoji], held_out: bool, device: torch.device):
        singles = torch.tensor(pairs(selection, held_out))
        nothing = torch.full((len(singles), 1), len(selection))
        self.singles = torch.cat([singles[:, :1], nothing, singles[:, 1:]], dim=1).to(device)
        self.doubles = torch.from_numpy(triples(len(selection), held_out)).to(device)

    def draw(self, ones: int, twos: int) -> torch.Tensor:
        """``ones`` random rows of one thing, then ``twos`` of two: int64 ``(ones + twos, 3)``."""
        device = self.singles.device
        rows = [
            table[torch.randint(len(table), (count,), device=device)]
            for table, count in ((self.singles, ones), (self.doubles, twos))
        ]
        return torch.cat(rows)


def paint(painter: Painter, rows: torch.Tensor, ones: int) -> torch.Tensor:
    """Paint rows as ``Scenes.draw`` gives them: ``ones`` of one thing first."""
    left, right, colour = rows.unbind(dim=1)
    pictures = []
    if ones:
        pictures.append(painter.one(left[:ones], colour[:ones]))
    if ones < len(rows):
        pictures.append(painter.two(left[ones:], right[ones:], colour[ones:]))
    return torch.cat(pictures)


def to_levels(images: torch.Tensor) -> np.ndarray:
    """Images ``(n, 3, h, w)`` in [-1, 1] to uint8 ``(n, h, w, 3)``."""
    levels = (images.float().permute(0, 2, 3, 1) + 1) * 127.5
    return levels.round().clamp(0, 255).byte().cpu().numpy()


def save_grid(images: torch.Tensor, path: Path, columns: int) -> None:
    """Write images ``(n, 3, h, w)`` in [-1, 1] as one PNG, row by row."""
    levels = to_levels(images)
    height, width = levels.shape[1:3]
    sheet = Image.new("RGB", (columns * width, -(-len(levels) // columns) * height))
    for place, picture in enumerate(levels):
        corner = (place % columns * width, place // columns * height)
        sheet.paste(Image.fromarray(picture), corner)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every program that paints pictures needs."""
    parser.add_argument("--data", type=Path, required=True, help="selection, emoji.tsv")
    parser.add_argument("--assets", type=Path, required=True, help="folder of <hexcode>.webp")


def main() -> None:
    """Check the pinned labels and write a sheet of pictures, of one thing and of two."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_data_arguments(parser)
    parser.add_argument("--emojibase", type=Path, required=True, help="emojibase en/data.json")
    parser.add_argument("--out", type=Path, required=True, help="sheet, PNG")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    selection = read_selection(arguments.data)
    check_labels(selection, arguments.emojibase)
    painter = Painter(load_icons(selection, arguments.assets), torch.device("cpu"))
    torch.manual_seed(arguments.seed)
    every = torch.arange(len(selection))
    ones = painter.one(every, every % len(COLOURS))
    scenes = Scenes(selection, False, torch.device("cpu"))
    twos = paint(painter, scenes.draw(0, 80), 0)
    save_grid(torch.cat([ones, twos]), arguments.out, columns=20)


if __name__ == "__main__":
    main()

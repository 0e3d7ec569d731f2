"""Prove that emoji-flux draws what its captions say, on captions it was never trained on.

A picture sampled through FluxPipeline counts as right when the nearest of many jittered renderings
of every emoji on the named background, measured in the autoencoder's latent space, shows the named
emoji.  A contact sheet with the captions is written as well, for people.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from eigencache.emoji import data, flow, training


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Mean latents ``(n, 1024)`` of pictures ``(n, 3, 64, 64)`` in [-1, 1]."""
    means = [vae.encode(batch).latent_dist.mean.flatten(1) for batch in pictures.split(64)]
    return torch.cat(means)


def build_bank(
    vae: AutoencoderKL, icons: list[Image.Image], copies: int, seed: int
) -> torch.Tensor:
    """Latents of renderings ``(8 colours, emoji, copies, 1024)``, float16."""
    random = np.random.default_rng(seed)
    bank = []
    for colour in tqdm(data.COLOURS, desc="bank"):
        pictures = [
            np.asarray(data.render(icon, colour, random)) for icon in icons for _ in range(copies)
        ]
        latents = encode(vae, data.to_model_range(torch.from_numpy(np.stack(pictures))))
        bank.append(latents.half().view(len(icons), copies, -1))
    return torch.stack(bank)


def nearest(latents: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """Emoji with the nearest rendering: latents ``(n, 1024)``, bank ``(emoji, copies, 1024)``."""
    distances = torch.cdist(latents, bank.float().flatten(0, 1)).view(len(latents), *bank.shape[:2])
    return distances.amin(dim=2).argmin(dim=1)


def choose_pairs(selection: list[data.Emoji], count: int, seed: int) -> list[tuple[int, int]]:
    """Draw ``count`` held-out (emoji, colour) pairs without replacement."""
    pairs = data.pairs(selection, held_out=True)
    order = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [pairs[place] for place in order]


def contact_sheet(
    pictures: torch.Tensor, captions: list[str], path: Path, columns: int = 8
) -> None:
    """Write pictures ``(n, 3, 64, 64)`` at twice their size, each above its caption."""
    levels = data.to_levels(pictures)
    width, height, font = 2 * data.SIZE + 12, 2 * data.SIZE + 44, ImageFont.load_default(11)
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (level, text) in enumerate(zip(levels, captions, strict=True)):
        left, top = place % columns * width + 6, place // columns * height + 6
        large = Image.fromarray(level).resize((2 * data.SIZE,) * 2, Image.LANCZOS)
        sheet.paste(large, (left, top))
        lines = "\n".join(textwrap.wrap(text, 21))
        draw.multiline_text((left, top + 2 * data.SIZE + 3), lines, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def judge(
    pipeline: FluxPipeline,
    selection: list[data.Emoji],
    pairs: list[tuple[int, int]],
    bank: torch.Tensor,
    steps: int,
) -> tuple[dict, torch.Tensor]:
    """Sample every pair with its own seed; returns the report and the pictures."""
    captions = [data.caption(selection[emoji], data.COLOURS[colour]) for emoji, colour in pairs]
    pictures = torch.cat(
        [
            flow.sample(pipeline, captions[start : start + 20], steps, seed=start)
            for start in tqdm(range(0, len(captions), 20), desc="sampling")
        ]
    )
    latents = encode(pipeline.vae, pictures)
    mistakes = []
    for place, (emoji, colour) in enumerate(pairs):
        found = nearest(latents[place : place + 1], bank[colour]).item()
        if found != emoji:
            mistakes.append(
                {"caption": captions[place], "seed": place, "nearest": selection[found].label}
            )
    report = {
        "captions": len(pairs),
        "steps": steps,
        "renderings_per_emoji_and_background": bank.shape[2],
        "right": len(pairs) - len(mistakes),
        "share_right": 1 - len(mistakes) / len(pairs),
        "mistakes": mistakes,
    }
    return report, pictures


def main() -> None:
    """Sample held-out captions, judge them, write ``report.json`` and ``contact-sheet.png``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data.add_data_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="FluxPipeline directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, help="captions for the contact sheet, one a line")
    parser.add_argument("--bank", type=Path, help="reuse these latents, or write them if absent")
    parser.add_argument(
        "--copies", type=int, default=12, help="renderings per emoji and background"
    )
    parser.add_argument("--count", type=int, default=100, help="captions to judge")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    selection = data.read_selection(arguments.data)
    pipeline = FluxPipeline.from_pretrained(
        arguments.model, dtype=torch.float32, use_safetensors=True
    )
    if arguments.bank and arguments.bank.exists():
        bank = load_file(arguments.bank)["bank"]
    else:
        icons = data.load_icons(selection, arguments.assets)
        bank = build_bank(pipeline.vae, icons, arguments.copies, arguments.seed + 99)
        if arguments.bank:
            arguments.bank.parent.mkdir(parents=True, exist_ok=True)
            save_file({"bank": bank}, arguments.bank)
    pairs = choose_pairs(selection, arguments.count, arguments.seed)
    report, pictures = judge(pipeline, selection, pairs, bank, arguments.steps)
    captions = [data.caption(selection[emoji], data.COLOURS[colour]) for emoji, colour in pairs]
    if arguments.prompts:
        captions = arguments.prompts.read_text(encoding="utf-8").splitlines()
        pictures = flow.sample(pipeline, captions, arguments.steps, seed=0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures[:64], captions[:64], arguments.out / "contact-sheet.png")
    training.write_json(arguments.out / "report.json", report)


if __name__ == "__main__":
    main()

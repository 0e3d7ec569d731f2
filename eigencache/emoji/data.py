"""The emoji world: which emoji, how they are drawn, what the captions say, what is held out.

Pictures come from the npm package ``@lobehub/fluent-emoji-3d`` (one WebP per emoji), labels from
``emojibase-data``; ``data/emoji/emoji.tsv`` pins the selection.  A picture is one emoji on one of
eight plain backgrounds, 64 x 64 pixels, with a little jitter so that a caption has many pictures.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

SIZE = 64
ICON = 128  # icons are kept at this size, so that rotating and shrinking them stays sharp

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


def caption(emoji: Emoji, colour: str) -> str:
    """Caption of an emoji on a background, e.g. 'a red apple on a blue background'."""
    subject = f"{emoji.article} {emoji.label}".strip()
    return f"{subject} on a {colour} background"


def is_held_out(emoji_index: int, colour_index: int) -> bool:
    """Whether this pair is kept out of training: one of the eight backgrounds for every emoji."""
    return (emoji_index + colour_index) % len(COLOURS) == 0


def pairs(selection: list[Emoji], held_out: bool) -> list[tuple[int, int]]:
    """All (emoji index, colour index) pairs that are held out, or all that are trained on."""
    return [
        (emoji.index, colour)
        for emoji in selection
        for colour in range(len(COLOURS))
        if is_held_out(emoji.index, colour) == held_out
    ]


def load_icons(selection: list[Emoji], assets: Path) -> list[Image.Image]:
    """Load one RGBA icon per emoji, ``ICON`` x ``ICON``, from a folder of ``<hexcode>.webp``."""
    files = {plain_hexcode(path.stem): path for path in sorted(assets.glob("*.webp"))}
    missing = [emoji.hexcode for emoji in selection if emoji.hexcode not in files]
    if missing:
        raise FileNotFoundError(f"no picture in {assets} for {', '.join(missing)}")
    return [
        Image.open(files[emoji.hexcode]).convert("RGBA").resize((ICON, ICON), Image.LANCZOS)
        for emoji in selection
    ]


def render(icon: Image.Image, colour: str, random: np.random.Generator) -> Image.Image:
    """Draw an RGBA icon on a background with jitter from ``random``; returns RGB, 64 x 64.

    Jitter: size 0.84 to 0.95 of the picture, shift of up to 2 pixels, mirrored half the time,
    turned by up to 6 degrees, and the background's shade moved by up to 10 of 255 levels.
    """
    side = round(SIZE * random.uniform(0.84, 0.95))
    left, top = (SIZE - side) // 2 + random.integers(-2, 3, size=2)
    if random.random() < 0.5:
        icon = icon.transpose(Image.FLIP_LEFT_RIGHT)
    icon = icon.rotate(random.uniform(-6, 6), Image.BICUBIC).resize((side, side), Image.LANCZOS)
    shade = np.clip(np.array(BACKGROUNDS[colour]) + random.uniform(-10, 10), 0, 255)
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(level) for level in shade))
    picture.paste(icon, (int(left), int(top)), icon)
    return picture


def render_pool(
    icons: list[Image.Image], chosen: list[tuple[int, int]], count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render ``count`` jittered pictures that visit every pair in ``chosen`` equally often.

    Returns uint8 pictures ``(count, 64, 64, 3)`` and int64 pairs ``(count, 2)``.
    """
    random = np.random.default_rng(seed)
    order = np.concatenate(
        [random.permutation(len(chosen)) for _ in range(-(-count // len(chosen)))]
    )
    labels = np.array(chosen, dtype=np.int64)[order[:count]]
    pictures = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for row, (emoji, colour) in enumerate(tqdm(labels, desc="rendering", mininterval=2)):
        pictures[row] = render(icons[emoji], COLOURS[colour], random)
    return pictures, labels


def to_model_range(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 ``(n, h, w, 3)`` to float32 ``(n, 3, h, w)`` in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_levels(images: torch.Tensor) -> np.ndarray:
    """Images ``(n, 3, h, w)`` in [-1, 1] to uint8 ``(n, h, w, 3)``."""
    return ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


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
    """Add the options that every stage which renders pictures needs."""
    parser.add_argument("--data", type=Path, required=True, help="selection, emoji.tsv")
    parser.add_argument("--assets", type=Path, required=True, help="folder of <hexcode>.webp")


def main() -> None:
    """Check the pinned labels and write a contact sheet of renderings to look at."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_data_arguments(parser)
    parser.add_argument("--emojibase", type=Path, required=True, help="emojibase en/data.json")
    parser.add_argument("--out", type=Path, required=True, help="contact sheet, PNG")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    selection = read_selection(arguments.data)
    check_labels(selection, arguments.emojibase)
    icons = load_icons(selection, arguments.assets)
    random = np.random.default_rng(arguments.seed)
    columns = 24
    sheet = Image.new("RGB", (columns * SIZE, -(-len(selection) // columns) * SIZE))
    for emoji in selection:
        picture = render(icons[emoji.index], COLOURS[random.integers(len(COLOURS))], random)
        sheet.paste(picture, (emoji.index % columns * SIZE, emoji.index // columns * SIZE))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.out)


if __name__ == "__main__":
    main()

"""Copy figures, smaller, to where the documentation shows them: docs/images/NAME.webp.

    python -m benchmarks.pictures figures/emoji-flux/*.png figures/benchmarks/quality.png

The page docs/figures.md shows those that there are.
"""

import argparse
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, QUALITY = 1000, 80  # pixels, where pages show 750 to 880; of lossy WebP, where 100 is best


def take(figure: Path, folder: Path = IMAGES) -> Path:
    """Write the picture of a figure, a PNG of any size, and return its path."""
    with Image.open(figure) as image:
        picture = image.convert("RGB")
    if picture.width > WIDTH:
        size = WIDTH, round(picture.height * WIDTH / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    path = folder / f"{figure.stem}.webp"
    picture.save(path, quality=QUALITY, method=6)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="+", type=Path, help="PNG files of the workflow")
    for figure in parser.parse_args().figures:
        path = take(figure)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")

"""The pictures of the documentation: small copies of figures, each shown by a page."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import program
from PIL import Image

from benchmarks import pictures

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("width", "expected"), [(2400, (1000, 500)), (300, (300, 150))])
def test_a_picture_is_the_figure_at_most_so_wide(tmp_path, width, expected):
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    Image.fromarray(np.tile(ramp, (width // 2, 1))).save(tmp_path / "a.png")
    path = pictures.take(tmp_path / "a.png", tmp_path)
    assert path == tmp_path / "a.webp"
    with Image.open(path) as picture:
        assert picture.size == expected
        middle = np.asarray(picture.convert("L"))[10].astype(int)
    assert np.abs(middle - np.linspace(0, 255, expected[0])).max() < 6
    first = path.read_bytes()
    assert pictures.take(tmp_path / "a.png", tmp_path).read_bytes() == first


@pytest.mark.slow
def test_a_file_that_is_no_figure_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    done = program("-m", "benchmarks.pictures", str(tmp_path / "a.png"))
    assert done.returncode and "a.png" in done.stderr


def test_pages_show_every_picture_and_all_are_small():
    pages = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    pages.append(runpy.run_path(str(ROOT / "docs/generated.py"))["figures"]())
    shown = set(re.findall(r"images/([\w-]+\.webp)", " ".join(pages)))
    there = sorted(pictures.IMAGES.iterdir())
    assert {path.name for path in there} == shown
    assert sum(path.stat().st_size for path in there) < 1_000_000

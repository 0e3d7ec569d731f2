"""Samples: the same prompts and noise under every method at one budget of full steps.

One row a prompt, one column a method; the first column is the full run, which all others try to
match. The number below an image is its PSNR to the full run in dB: higher is closer. Pixels are
drawn as they are, without smoothing, wherever the page has room for a whole number of dots each.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from eigencache.figures import OURS, TWO_COLUMNS, require, save, style, wrapped
from eigencache.plan import FULL
from eigencache.stages import run
from eigencache.tables import of_first_reference, read_table, refuse_altered

HEAD_PT, PROMPT_PT, SCORE_PT = 6.5, 6.5, 6
LINE = 1.25  # distance of lines, in font sizes


@dataclass(frozen=True)
class _Grid:
    """Where things are, in dots from the left and from the top; `dpi` dots an inch.

    Whole dots keep every pixel of a small image equally large.
    """

    dpi: int
    left: int
    top: int
    cell: tuple[int, int]
    pitch: tuple[int, int]

    def box(self, row: int, column: int, size: tuple[int, int]) -> tuple[float, ...]:
        """Return left, bottom, width, height of a cell, as shares of a figure of `size` dots."""
        x = self.left + column * self.pitch[0]
        y = size[1] - self.top - row * self.pitch[1] - self.cell[1]
        return x / size[0], y / size[1], self.cell[0] / size[0], self.cell[1] / size[1]


@style()
def draw(
    images: np.ndarray,
    labels: Sequence[str],
    prompts: Sequence[str],
    psnr: np.ndarray | None = None,
) -> Figure:
    """Return the figure of images, uint8 `[prompts, methods, height, width, 3]`.

    Args:
        images: what is shown.
        labels: heads of the columns.
        prompts: texts of the rows.
        psnr: float `[prompts, methods]` in dB, to be written below each image; nan writes nothing.

    Raises:
        ValueError: there is no image, or shapes do not agree.
    """
    _check(images, labels, prompts, psnr)
    heads = [wrapped(label, _cell_inches(len(labels)), HEAD_PT) for label in labels]
    lines = max(head.count("\n") + 1 for head in heads)
    grid = _layout(images.shape, lines, psnr is not None)
    size = (grid.left + len(labels) * grid.pitch[0], grid.top + len(prompts) * grid.pitch[1])
    # A PDF then holds the very pixels; otherwise they are resampled with care.
    how = "none" if grid.cell[0] % images.shape[3] == 0 else "auto"
    # Placed by hand: no automatic layout keeps to whole dots. Not `layout="none"`, after which
    # Matplotlib 3.11 falls back to the style's layout once a first file is saved.
    figure = Figure(figsize=(size[0] / grid.dpi, size[1] / grid.dpi))
    figure.set_layout_engine("none")
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(labels):
            axes = figure.add_axes(grid.box(row, column, size))
            axes.imshow(images[row, column], interpolation=how, aspect="auto")
            axes.set_axis_off()
            if row == 0:
                _head(axes, heads[column], bold=label == OURS)
            if psnr is not None and not np.isnan(psnr[row, column]):
                _below(axes, _decibels(psnr[row, column]))
            if column == 0:
                _prompt(axes, prompt, grid)
    return figure


def select(records: pd.DataFrame, budget: int, prompts: Sequence[int]) -> pd.DataFrame:
    """Return the records to show: every method's run of `budget` full steps, and the full run.

    Args:
        records: of all methods, `eigencache.stages.sample`.
        budget: the number of full steps.
        prompts: the indices of the prompts, in the order of rows.

    Returns:
        the rows of `records`, by prompt and then by method; the full run is first.

    Raises:
        ValueError: the table is empty or lacks a column, or there is no image of a method, prompt
            and budget.
    """
    columns = ["run", "method", "prompt_index", "prompt", "full_steps", "image"]
    require(records, columns, "records")
    labels = sorted(dict.fromkeys(records["method"]), key=lambda label: label != FULL)
    shown = records[(records["method"] == FULL) | (records["full_steps"] == budget)]
    shown = shown.set_index(["prompt_index", "method"], drop=False)
    wanted = pd.MultiIndex.from_product([prompts, labels])
    missing = wanted.difference(shown.index, sort=False)
    if len(missing):
        index, label = missing[0]
        there = sorted(set(records.loc[records["method"] == label, "full_steps"]))
        raise ValueError(
            f"no image of {label}, prompt {index}, {budget} full steps; {label} has runs of {there}"
        )
    return shown.loc[wanted].reset_index(drop=True)


def table_of(shown: pd.DataFrame, scores: pd.DataFrame) -> np.ndarray:
    """Return the PSNR, float `[prompts, methods]`, of selected records; nan for the full run.

    Raises:
        ValueError: the table is empty or lacks a column, or an image has no score.
    """
    require(scores, ["run", "prompt_index", "psnr"], "scores")
    scored = shown.merge(scores, "left", on=["run", "prompt_index"], validate="one_to_one")
    unscored = sorted(set(scored.loc[scored["psnr"].isna(), "run"]))
    if unscored:
        raise ValueError(f"runs {unscored} have images without a score")
    psnr = scored["psnr"].mask(scored["method"] == FULL)
    return psnr.to_numpy(float).reshape(shown["prompt_index"].nunique(), -1)


def read_images(paths: Sequence[str]) -> np.ndarray:
    """Return RGB images, uint8 `[n, height, width, 3]`.

    Raises:
        OSError: a file is missing or not an image.
        ValueError: they differ in size.
    """
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    if len({image.shape for image in images}) != 1:
        raise ValueError("the images differ in size")
    return np.stack(images)


def _check(images, labels, prompts, psnr) -> None:
    expected = (len(prompts), len(labels))
    if 0 in expected:
        raise ValueError("no prompts or no methods: nothing to draw")
    if images.ndim != 5 or images.shape[:2] != expected or images.shape[-1] != 3:
        raise ValueError(f"images must be {expected} of [height, width, 3], got {images.shape}")
    if psnr is not None and psnr.shape != expected:
        raise ValueError(f"psnr must have shape {expected}, got {psnr.shape}")


def _cell_inches(columns: int) -> float:
    """Return the most that a column can have; prompts keep 0.9 inches or more."""
    return min((TWO_COLUMNS - 0.9) / columns - 0.03, 1.2)


def _layout(shape: tuple[int, ...], head_lines: int, scores: bool) -> _Grid:
    """Return the layout of images of `shape`; small ones are enlarged by a whole number."""
    columns, height, width = shape[1:4]
    dpi = round(mpl.rcParams["savefig.dpi"])
    cell = int(_cell_inches(columns) * dpi)
    whole = cell // width * width
    if whole > 0.85 * cell:  # or too much of the page would stay white
        cell = whole
    gap = round(0.03 * dpi)
    pitch = cell + gap
    left = min(round(TWO_COLUMNS * dpi) - columns * pitch, round(1.3 * dpi))
    top = round((head_lines * HEAD_PT * LINE + 6) / 72 * dpi)
    tall = round(cell * height / width)
    below = round(SCORE_PT * 1.5 / 72 * dpi) if scores else 0
    return _Grid(dpi, left, top, (cell, tall), (pitch, tall + gap + below))


def _head(axes, text: str, bold: bool) -> None:
    axes.annotate(
        text, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="center",
        va="baseline", size=HEAD_PT, parse_math=False, annotation_clip=False,
        weight="bold" if bold else "normal",
    )  # fmt: skip


def _below(axes, text: str) -> None:
    axes.annotate(
        text, (0.5, 0), (0, -1), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="top", size=SCORE_PT, annotation_clip=False,
    )  # fmt: skip


def _prompt(axes, prompt: str, grid: _Grid) -> None:
    lines = max(1, int(grid.cell[1] / grid.dpi * 72 / (PROMPT_PT * LINE)))
    text = wrapped(prompt, grid.left / grid.dpi - 0.12, PROMPT_PT, lines)
    axes.annotate(
        text, (0, 0.5), (-4, 0), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="center", size=PROMPT_PT, parse_math=False,
        annotation_clip=False,
    )  # fmt: skip


def _decibels(psnr: float) -> str:
    return "identical" if np.isinf(psnr) else f"{psnr:.1f} dB"


def main(arguments: argparse.Namespace) -> None:
    records = pd.concat(map(read_table, arguments.records), ignore_index=True)
    shown = select(records, arguments.budget, arguments.prompts)
    refuse_altered(shown)
    psnr = None
    if arguments.scores:
        scores = pd.concat(map(read_table, arguments.scores), ignore_index=True)
        psnr = table_of(shown, of_first_reference(scores))
    labels, prompts = list(dict.fromkeys(shown["method"])), list(dict.fromkeys(shown["prompt"]))
    images = read_images(shown["image"])
    images = images.reshape(len(prompts), len(labels), *images.shape[1:])
    save(draw(images, labels, prompts, psnr), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("samples", description=__doc__)
    parser.add_argument("--records", nargs="+", required=True, help="one a method, in their order")
    parser.add_argument("--scores", nargs="*", help="one a method; writes the PSNR of each image")
    parser.add_argument("--budget", type=int, required=True, help="the number of full steps")
    parser.add_argument("--prompts", type=int, nargs="+", required=True, help="their indices")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["records", "scores"])

"""Samples: the same prompts and noise under every method at one budget of full steps.

One row per prompt, one column per method; the first column is the reference run, which all others
try to match. Many methods are split into several blocks of columns, each starting with the
reference; of very many, the best are shown. Below an image, if requested, is how it differs from
the reference: the mean over red, green and blue of the absolute difference, in levels of 255, on
one scale for all; and the part in the frame enlarged. The number below is the PSNR of the whole
image to the reference in dB: higher is closer. Pixels are drawn as they are, without smoothing,
wherever the page has room for a whole number of dots each.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

from eigencache.plan import FEWER_STEPS, FULL
from reproduction.figures._common import (
    INK,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    letter,
    looks_of,
    of_first_reference,
    require,
    save,
    style,
    wrapped,
)
from reproduction.tables.tables import read_table, refuse_altered, still_of

COLUMNS = 6  # images side by side
SHOWN = 10  # of more methods than these, the best are shown unless the caller names others
HEAD_PT, PROMPT_PT, SCORE_PT = 7, 7, 6.5
LINE = 1.25  # distance of lines, in font sizes
ZOOM = 4  # the part that is enlarged is this many times smaller than the image
CLIPPED = 0.999  # the share of differences inside the colour scale
MAP, FRAME = "magma", "#B3001B"
FOOT = 0.42  # inches for the colour bar
PAGE, LEAST = 9.0, 0.5  # inches: the figure's height, unless images would be less wide than these

Box = tuple[int, int, int]  # left, top and size in pixels of a square part of an image


@dataclass(frozen=True)
class _Grid:
    """Where things are, in dots from the left and from the top; `dpi` dots an inch.

    Whole dots keep every pixel of a small image equally large. A cell has parts, one below the
    other: an image, what of it is enlarged, and its difference.
    """

    dpi: int
    left: int
    head: int
    width: int
    parts: tuple[int, ...]
    gap: int
    below: int
    shape: tuple[int, int, int]  # blocks, prompts, columns
    above: int
    foot: int

    @property
    def pitch(self) -> int:
        """The distance of prompts of the same block."""
        return sum(self.parts) + self.gap * len(self.parts) + self.below

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the figure."""
        blocks, prompts, columns = self.shape
        width = self.left + columns * (self.width + self.gap)
        return width, self.above + blocks * (self.head + prompts * self.pitch) + self.foot

    def axes(self, figure: Figure, place: tuple[int, int, int], part: int) -> Axes:
        """Return new axes, without lines, for a part of the cell at a block, row and column."""
        block, row, column = place
        x = self.left + column * (self.width + self.gap)
        y = self.above + block * (self.head + self.shape[1] * self.pitch) + self.head
        y += row * self.pitch
        y += sum(self.parts[:part]) + part * self.gap
        width, height = self.size
        bottom = height - y - self.parts[part]
        box = x / width, bottom / height, self.width / width, self.parts[part] / height
        axes = figure.add_axes(box)
        axes.set_axis_off()
        return axes


@style()
def draw(
    images: np.ndarray,
    labels: Sequence[str],
    prompts: Sequence[str],
    psnr: np.ndarray | None = None,
    zoom: str | Sequence[int] | None = None,
    difference: bool = False,
    order: Sequence[str] = (),
    setting: str = "",
) -> Figure:
    """Return the figure of images, uint8 `[prompts, methods, height, width, 3]`.

    Args:
        images: what is shown; the first of each prompt is the reference.
        labels: heads of the columns.
        prompts: texts of the rows.
        psnr: float `[prompts, methods]` in dB, to be written below each image; nan writes nothing.
        zoom: what is enlarged: "auto", or the left, top and size of a square in pixels.
        difference: whether to draw the differences to the reference.
        order: all methods of the experiment, in the order that fixes their looks.
        setting: for the heading.

    Raises:
        ValueError: there is no image, shapes do not agree, or what to enlarge is not in the image.
    """
    _check(images, labels, prompts, psnr)
    boxes = [zoom_box(row, zoom) if zoom else None for row in images]
    blocks = blocks_of(len(labels))
    columns = max(map(len, blocks))
    named = [f"{letter(place)}  {label}" for place, label in enumerate(labels)]
    extra = (bool(zoom), difference)
    heading = Heading("The same prompts and noise under every method", setting)
    cells = (len(blocks), len(prompts), columns)
    grid = _layout(images.shape, cells, psnr, extra, heading)
    room = 0.94 * grid.width / grid.dpi
    heads = [wrapped(name, room, HEAD_PT, weight="bold") for name in named]
    lines = max(head.count("\n") + 1 for head in heads)
    grid = replace(grid, head=_head_dots(lines, grid.dpi))
    # Placed by hand: no automatic layout keeps to whole dots. Not `layout="none"`, after which
    # Matplotlib 3.11 falls back to the style's layout once a first file is saved.
    figure = Figure(figsize=(grid.size[0] / grid.dpi, grid.size[1] / grid.dpi))
    figure.set_layout_engine("none")
    heading.draw(figure)
    drawn = looks_of(labels, order)
    errors = differences(images) if difference else None
    norm = PowerNorm(0.5, 0, limit_of(errors)) if difference else None
    for block, shown in enumerate(blocks):
        for row, prompt in enumerate(prompts):
            for column, method in enumerate(shown):
                place = (block, row, column)
                axes = grid.axes(figure, place, 0)
                _image(axes, images[row, method], grid)
                if row == 0:
                    _head(axes, heads[method], drawn.get(labels[method], {}).get("color", INK))
                if column == 0:
                    _prompt(axes, prompt, grid)
                if zoom:
                    _frame(axes, boxes[row])
                    axes = grid.axes(figure, place, 1)
                    _image(axes, part_of(images[row, method], boxes[row]), grid)
                if difference and method:  # the reference differs nowhere
                    axes = grid.axes(figure, place, len(grid.parts) - 1)
                    _image(axes, errors[row, method], grid, norm)
                if psnr is not None and not np.isnan(psnr[row, method]):
                    _below(axes, decibels(psnr[row, method]))
    if difference:
        _colour_bar(figure, grid, norm, float(errors.max()))
    return figure


def blocks_of(methods: int) -> list[list[int]]:
    """Return which methods stand side by side: the reference, 0, leads each block of the others.

    The blocks are as equal as can be, none of more than `COLUMNS`.
    """
    others = np.arange(1, methods)
    count = max(1, ceil(len(others) / (COLUMNS - 1)))
    return [[0, *map(int, part)] for part in np.array_split(others, count)]


def differences(images: np.ndarray) -> np.ndarray:
    """Return by how much images, uint8 `[prompts, methods, height, width, 3]`, miss the first.

    Returns:
        The mean over colours of the size of the difference, in levels of 255, float
        `[prompts, methods, height, width]`.
    """
    values = images.astype(np.float32)
    return np.abs(values - values[:, :1]).mean(-1)


def limit_of(errors: np.ndarray) -> float:
    """Return the difference at which the colour scale ends, 1 at least: very few are larger."""
    return max(1.0, float(np.ceil(np.quantile(errors, CLIPPED))))


def zoom_box(images: np.ndarray, zoom: str | Sequence[int]) -> Box:
    """Return what to enlarge of one prompt's images, uint8 `[methods, height, width, 3]`.

    Of "auto" it is the square, a quarter of the shorter side wide, over which the sum of the
    differences is largest, each pixel's being that of the method that differs most there.

    Raises:
        ValueError: a given square is not in the image.
    """
    height, width = images.shape[1:3]
    if zoom != "auto":
        left, top, size = map(int, zoom)
        if size < 1 or min(left, top) < 0 or left + size > width or top + size > height:
            raise ValueError(
                f"zoom: the square of {size} pixels at {left}, {top} (left, top) does not lie in "
                f"an image of {width} x {height} pixels"
            )
        return left, top, size
    size = max(1, min(height, width) // ZOOM)
    most = np.abs(images.astype(np.int64) - images[0].astype(np.int64)).sum(-1).max(0)
    sums = np.pad(most.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(left), int(top), size


def part_of(image: np.ndarray, box: Box) -> np.ndarray:
    """Return the square part of an image, `[height, width, ...]`."""
    left, top, size = box
    return image[top : top + size, left : left + size]


def best(scores: pd.DataFrame, budget: int, count: int = SHOWN) -> list[str]:
    """Return the full run and the methods with a run of a budget, in the order of the table.

    Of more than `count` methods they are ours, fewer steps and those of the highest mean PSNR.
    """
    rows, _ = of_first_reference(scores)
    means = rows[(rows["full_steps"] == budget) & (rows["method"] != FULL)]
    means = means.groupby("method", sort=False)["psnr"].mean()
    first = [label for label in (OURS, FEWER_STEPS) if label in means.index]
    ranked = [*first, *means.drop(first).sort_values(ascending=False, kind="stable").index]
    return [FULL, *(label for label in means.index if label in ranked[:count])]


def select(
    scores: pd.DataFrame, methods: Sequence[str], budget: int, prompts: Sequence[int]
) -> pd.DataFrame:
    """Return the rows to show: the reference run, and every method's run of `budget` full steps.

    Args:
        scores: `results/EXPERIMENT/scores.csv`; its first reference counts.
        methods: their labels, in the order of columns.
        budget: the number of full steps; the full run has its own.
        prompts: the indices of the prompts, in the order of rows.

    Returns:
        the rows of `scores`, by prompt and then by run.

    Raises:
        ValueError: the table is empty or lacks a column, or there is no image of a method, prompt
            and budget.
    """
    columns = ["run", "method", "prompt_index", "prompt", "full_steps", "psnr", "image"]
    require(scores, columns, "scores")
    rows, reference = of_first_reference(scores)
    runs = [reference]
    for method in methods:
        of_method = rows[rows["method"] == method]
        # By its name: a run may take more full steps than its plan, such as where experts change.
        named = of_method["run"] == f"{method}-{budget:02d}"
        same = named if named.any() else of_method["full_steps"] == budget
        of_budget = of_method[same | (method == FULL)]
        if of_budget.empty:
            there = sorted(set(of_method["full_steps"]))
            raise ValueError(
                f"no image of {method} with {budget} full steps; it has runs of {there}"
            )
        runs.append(of_budget["run"].iloc[0])
    shown = rows.set_index(["prompt_index", "run"], drop=False)
    wanted = pd.MultiIndex.from_product([prompts, dict.fromkeys(runs)])
    missing = wanted.difference(shown.index, sort=False)
    if len(missing):
        index, name = missing[0]
        raise ValueError(f"no image of prompt {index} by the run {name}")
    return shown.loc[wanted].reset_index(drop=True)


def psnr_of(shown: pd.DataFrame) -> np.ndarray:
    """Return the PSNR, float `[prompts, methods]`, of selected rows; nan for the reference.

    Raises:
        ValueError: an image has no score.
    """
    unscored = sorted(set(shown.loc[shown["psnr"].isna(), "run"]))
    if unscored:
        raise ValueError(f"runs {unscored} have images without a score")
    psnr = shown["psnr"].mask(shown["run"] == shown["reference"])
    return psnr.to_numpy(float).reshape(shown["prompt_index"].nunique(), -1)


def read_images(paths: Sequence[str]) -> np.ndarray:
    """Return RGB images, uint8 `[n, height, width, 3]`.

    Raises:
        OSError: a file is missing or not an image.
        ValueError: they differ in size.
    """
    images = []
    for path in paths:
        with Image.open(still_of(path)) as image:
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


def _head_dots(lines: int, dpi: int) -> int:
    """Return the height of a head of so many lines."""
    return round((lines * HEAD_PT * LINE + 6) / 72 * dpi)


def _layout(shape, cells: tuple[int, int, int], psnr, extra, heading: Heading) -> _Grid:
    """Return the layout of images of `shape`; small ones are enlarged by a whole number.

    Heads have two lines.

    Args:
        shape: of all images.
        cells: the numbers of blocks, prompts and columns.
        psnr: None if no scores are written.
        extra: whether there are enlarged parts, and differences.
        heading: of the figure.
    """
    height, width = shape[2:4]
    dpi = round(mpl.rcParams["savefig.dpi"])
    zoom, difference = extra
    gap = round(0.03 * dpi)
    head = _head_dots(2, dpi)
    below = 0 if psnr is None else round(SCORE_PT * 1.5 / 72 * dpi)
    below += gap if any(extra) else 0  # prompts lie further apart than the parts of one
    above, foot = round(heading.above(TWO_COLUMNS) * dpi), round(FOOT * dpi) * difference
    blocks, prompts, _ = cells
    other = above + foot + blocks * (head + prompts * (3 * gap + below))
    tallest = (PAGE * dpi - other) / (blocks * prompts * (height / width * (1 + difference) + zoom))
    cell = int(min(_cell_inches(cells[2]) * dpi, max(tallest, LEAST * dpi)))
    whole = cell // width * width
    if whole > 0.85 * cell:  # or too much of the page would stay white
        cell = whole
    left = min(round(TWO_COLUMNS * dpi) - cells[2] * (cell + gap), round(1.3 * dpi))
    tall = round(cell * height / width)
    parts = (tall, *[cell] * zoom, *[tall] * difference)
    return _Grid(dpi, left, head, cell, parts, gap, below, cells, above, foot)


def _image(axes: Axes, pixels: np.ndarray, grid: _Grid, norm: PowerNorm | None = None) -> AxesImage:
    """Draw an image, or differences on a scale, over the whole of its axes."""
    # A PDF then holds the very pixels; otherwise they are resampled with care.
    how = "none" if grid.width % pixels.shape[1] == 0 else "auto"
    return axes.imshow(pixels, MAP if norm else None, norm, interpolation=how, aspect="auto")


def _frame(axes: Axes, box: Box) -> None:
    """Draw a frame around what is enlarged: white and dark, to be seen on any image."""
    left, top, size = box
    for colour, width in (("white", 1.2), (FRAME, 0.6)):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, size, size, fill=False, ec=colour, lw=width))


def _colour_bar(figure: Figure, grid: _Grid, norm: PowerNorm, largest: float) -> None:
    """Draw the scale of differences below all images."""
    width, height = (dots / grid.dpi for dots in grid.size)
    left, gap = grid.left / grid.dpi, grid.gap / grid.dpi
    place = (left / width, 0.31 / height, (width - left - gap) / width, 0.07 / height)
    bar = figure.colorbar(
        ScalarMappable(norm, MAP), cax=figure.add_axes(place), orientation="horizontal",
        extend="max" if largest > norm.vmax else "neither",
    )  # fmt: skip
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200) if tick <= norm.vmax]
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
    bar.minorticks_off()
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=6.5, pad=1.5)
    text = "difference to the reference (levels of 255)"
    bar.set_label(text, size=6.5, labelpad=1)


def _head(axes: Axes, text: str, colour: str) -> None:
    axes.annotate(
        text, (0.5, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="center",
        va="baseline", size=HEAD_PT, parse_math=False, annotation_clip=False, color=colour,
        weight="bold",
    )  # fmt: skip


def _below(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0.5, 0), (0, -1), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="top", size=SCORE_PT, annotation_clip=False,
    )  # fmt: skip


def _prompt(axes: Axes, prompt: str, grid: _Grid) -> None:
    lines = max(1, int(grid.parts[0] / grid.dpi * 72 / (PROMPT_PT * LINE)))
    text = wrapped(prompt, grid.left / grid.dpi - 0.12, PROMPT_PT, lines)
    axes.annotate(
        text, (0, 0.5), (-4, 0), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="center", size=PROMPT_PT, parse_math=False,
        annotation_clip=False,
    )  # fmt: skip


def decibels(psnr: float) -> str:
    return "identical" if np.isinf(psnr) else f"{psnr:.1f} dB"


def main(arguments: argparse.Namespace) -> None:
    scores = read_table(arguments.scores)
    methods = arguments.methods or best(scores, arguments.budget)
    shown = select(scores, methods, arguments.budget, arguments.prompts)
    refuse_altered(shown)
    prompts = list(dict.fromkeys(shown["prompt"]))
    labels = list(dict.fromkeys(shown["run"]))
    heads = shown.set_index("run")["method"].groupby(level=0).first()
    images = read_images(shown["image"])
    images = images.reshape(len(prompts), len(labels), *images.shape[1:])
    zoom = "auto" if arguments.zoom == ["auto"] else arguments.zoom
    figure = draw(
        images, list(heads[labels]), prompts, psnr_of(shown), zoom, bool(arguments.difference),
        arguments.labels, arguments.setting,
    )  # fmt: skip
    save(figure, arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("samples", __doc__)
    parser.add_argument("--scores", required=True, help="one row an image: scores.csv")
    parser.add_argument("--methods", nargs="+", help="labels, in their order; default: the best")
    parser.add_argument("--budget", type=int, required=True, help="the number of full steps")
    parser.add_argument("--prompts", type=int, nargs="+", required=True, help="their indices")
    parser.add_argument("--zoom", nargs="*", help="auto, or left, top and size in pixels")
    parser.add_argument("--difference", type=int, choices=(0, 1), default=0, help="1: draw them")
    run(main, parser, outputs=["out"], inputs=["scores"])

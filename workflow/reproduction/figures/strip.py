"""Strip: a few prompts by the full run, by EigenCache, by the best other method and by fewer steps.

All but the full run have one budget of full steps. The best other method is that of the highest
mean PSNR to the full run over all prompts. Below each image stands its PSNR to the full run: higher
is closer. The figure is made to be read at a width of 800 pixels.
"""

import argparse
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eigencache.plan import FULL
from reproduction.figures._common import (
    FAINT,
    INK,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    inches,
    looks_of,
    of_first_reference,
    require,
    save,
    style,
    wrapped,
)
from reproduction.figures.samples import check_images, decibels, psnr_of, read_images, select
from reproduction.tables.tables import read_table

GAP, SIDE, LINE = 0.06, 0.06, 0.17  # inches: between images, at both sides, a line of text
HEAD_PT, TEXT_PT = 9, 8


class Column(NamedTuple):
    """A column of the figure: a method, and what the reader should know of its run."""

    method: str
    remark: str
    mean: float


def columns_of(scores: pd.DataFrame, budget: int, ours: Collection[str] = (OURS,)) -> list[Column]:
    """Return the runs to show: the full one, ours, the best other method, and fewer steps.

    Args:
        scores: one row per image; its first reference counts.
        budget: the number of full steps.
        ours: the methods that are this project's. `EigenCache` is shown if it is one of them, else
            the best of them.

    Returns:
        the columns, without those for which the experiment has no run.

    Raises:
        ValueError: the table is empty or lacks a column, or no method has a run of the budget.
    """
    require(scores, ["method", "num_steps", "full_steps", "psnr"], "scores")
    rows, _ = of_first_reference(scores)
    whole = rows.loc[rows["method"] == FULL, "num_steps"].max()
    rows = rows[(rows["full_steps"] == budget) & (rows["method"] != FULL)]
    if rows.empty:
        raise ValueError(f"no method has a run of {budget} full steps")
    means = rows.groupby("method", sort=False)["psnr"].mean().sort_values(ascending=False)
    plain = set(rows.loc[rows["num_steps"] < whole, "method"])
    mine = [label for label in means.index if label in ours]
    others = [label for label in means.index if label not in plain.union(ours)]
    cached = f"{budget} of {whole:g} steps in full"
    chosen = {
        **dict.fromkeys([OURS] if OURS in mine else mine[:1], cached),
        **dict.fromkeys(others[:1], f"{cached}; the best other method" if mine else cached),
        **dict.fromkeys([k for k in means.index if k in plain][:1], f"{budget} sampler steps"),
    }
    return [
        Column(FULL, f"all {whole:g} steps in full", np.nan),
        *(Column(label, remark, means[label]) for label, remark in chosen.items()),
    ]


@style()
def draw(
    images: np.ndarray, columns: Sequence[Column], prompts: Sequence[str], psnr: np.ndarray,
    labels: Sequence[str] = (), setting: str = "",
) -> Figure:  # fmt: skip
    """Return the figure of images, uint8 `[prompts, columns, height, width, 3]`.

    Args:
        images: what is shown.
        columns: the runs.
        prompts: texts of the rows.
        psnr: float `[prompts, columns]` in dB; nan writes nothing.
        labels: all methods of the experiment, in the order that fixes their looks.
        setting: for the heading.

    Raises:
        ValueError: shapes do not agree.
    """
    expected = (len(prompts), len(columns))
    if images.shape[:2] != expected or psnr.shape != expected:
        raise ValueError(f"images and psnr must be of {expected}, got {images.shape}, {psnr.shape}")
    width = TWO_COLUMNS
    cell = (width - 2 * SIDE - (max(len(columns), 4) - 1) * GAP) / max(len(columns), 4)
    tall = cell * images.shape[2] / images.shape[3]
    remarks = [wrapped(column.remark, 0.96 * cell, TEXT_PT) for column in columns]
    heading = Heading("", setting)
    top = heading.above(width) + LINE * (2 + max(text.count("\n") for text in remarks) + 0.6)
    row = LINE + tall + LINE + GAP
    height = top + row * len(prompts) + 0.04
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    heading.draw(figure)
    drawn = looks_of([column.method for column in columns], labels)

    def write(x: float, y: float, text: str, **look) -> None:
        """Write a line of text, its top left at inches from the page's top left."""
        figure.text(x / width, 1 - y / height, text, va="top", parse_math=False, **look)

    for place, (column, remark) in enumerate(zip(columns, remarks, strict=True)):
        left, y = SIDE + place * (cell + GAP), heading.above(width)
        name = "Full run" if column.method == FULL else column.method
        fits = HEAD_PT * min(1, cell / inches(name, HEAD_PT, "bold"))
        write(left, y, name, size=fits, weight="bold",
              color=drawn.get(column.method, {"color": INK})["color"])  # fmt: skip
        write(left, y + LINE, remark, size=TEXT_PT, color=FAINT, linespacing=1.1)
        for i, prompt in enumerate(prompts):
            y = top + i * row
            if place == 0:
                text = wrapped(prompt, 0.96 * width - 2 * SIDE, TEXT_PT, lines=1)
                write(left, y, text, size=TEXT_PT)
            box = (left / width, 1 - (y + LINE + tall) / height, cell / width, tall / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            axes.imshow(images[i, place], aspect="auto", interpolation="nearest")
            if not np.isnan(psnr[i, place]):
                write(left, y + LINE + tall + 0.03, decibels(psnr[i, place]), size=TEXT_PT)
    return figure


def main(arguments: argparse.Namespace) -> None:
    scores = read_table(arguments.scores)
    columns = columns_of(scores, arguments.budget, arguments.ours)
    shown = select(scores, [c.method for c in columns], arguments.budget, arguments.prompts)
    # The reference leads the rows of each prompt, whether it has a column or not.
    shown = shown[shown["method"].isin([c.method for c in columns])]
    shown = shown.drop_duplicates(["prompt_index", "method"], keep="last")
    check_images(shown)
    prompts = list(dict.fromkeys(shown["prompt"]))
    images = read_images(shown["image"])
    images = images.reshape(len(prompts), len(columns), *images.shape[1:])
    psnr = psnr_of(shown)
    save(draw(images, columns, prompts, psnr, arguments.labels, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("strip", __doc__)
    parser.add_argument("--scores", required=True, help="one row an image: scores.csv")
    parser.add_argument("--budget", type=int, required=True, help="the number of full steps")
    parser.add_argument("--prompts", type=int, nargs="+", required=True, help="their indices")
    parser.add_argument("--ours", nargs="*", default=[OURS], help="this project's methods")
    run(main, parser, outputs=["out"], inputs=["scores"])

"""Strip: a few prompts by the full run, by EigenCache, by the best other cache and by fewer steps.

All but the full run have one budget of full steps. The best other cache is that of the highest
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
    letter,
    looks_of,
    of_first_reference,
    require,
    save,
    style,
    wrapped,
)
from reproduction.figures.samples import decibels, psnr_of, read_images, select
from reproduction.tables.tables import read_table, refuse_altered

GAP, SIDE, LINE = 0.06, 0.06, 0.17  # inches: between images, at both sides, a line of text
HEAD_PT, TEXT_PT = 9, 8
TITLE = "The same prompts and noise by the full run, EigenCache and its peers"


class Column(NamedTuple):
    """A column of the figure: a method, what it is here, its steps, and its mean PSNR in dB."""

    method: str
    remark: str
    steps: str
    mean: float


def columns_of(scores: pd.DataFrame, budget: int, ours: Collection[str] = (OURS,)) -> list[Column]:
    """Return the runs to show: the full one, ours, the best other cache, and fewer steps.

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
    chosen = {
        **dict.fromkeys([OURS] if OURS in mine else mine[:1], ("this project", "full steps")),
        **dict.fromkeys(others[:1], ("the best other cache", "full steps")),
        **dict.fromkeys([k for k in means.index if k in plain][:1], ("plain sampling", "steps")),
    }
    return [
        Column(FULL, "the reference", f"{whole:g} full steps", np.nan),
        *(
            Column(label, remark, f"{budget} {steps}", means[label])
            for label, (remark, steps) in chosen.items()
        ),
    ]


def describe(columns: Sequence[Column], prompts: int, setting: str) -> str:
    """Return what stands below the images: the mean PSNR of each run over so many prompts."""
    means = ", ".join(f"{c.method} {c.mean:.1f} dB" for c in columns if not np.isnan(c.mean))
    about = f"{setting}. " if setting else ""
    return f"{about}PSNR to the full run; means over {prompts} prompts: {means}."


@style()
def draw(
    images: np.ndarray, columns: Sequence[Column], prompts: Sequence[str], psnr: np.ndarray,
    labels: Sequence[str] = (), note: str = "",
) -> Figure:  # fmt: skip
    """Return the figure of images, uint8 `[prompts, columns, height, width, 3]`.

    Args:
        images: what is shown.
        columns: the runs.
        prompts: texts of the rows.
        psnr: float `[prompts, columns]` in dB; nan writes nothing.
        labels: all methods of the experiment, in the order that fixes their looks.
        note: what stands below the images.

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
    heading = Heading("", note=note)
    top = 0.06 + LINE * (2.5 + max(text.count("\n") for text in remarks))
    row = LINE + tall + LINE + 2 * GAP
    height = top + row * len(prompts) + heading.below(width)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    heading.draw(figure)
    figure.set_label(TITLE)  # which the columns' heads take the place of
    drawn = looks_of([column.method for column in columns], labels)

    def write(x: float, y: float, text: str, size: float, **look) -> None:
        """Write lines of text, the top of the first at inches from the page's top left."""
        for line, written in enumerate(text.split("\n")):
            base = y + LINE * line + size / 72
            figure.text(
                x / width, 1 - base / height, written, size=size, parse_math=False, **look
            )  # fmt: skip

    for place, (column, remark) in enumerate(zip(columns, remarks, strict=True)):
        left, y = SIDE + place * (cell + GAP), 0.06
        name = "Full run" if column.method == FULL else column.method
        name = f"{letter(place)}  {name}"
        fits = HEAD_PT * min(1, cell / inches(name, HEAD_PT, "bold"))
        write(left, y, name, size=fits, weight="bold",
              color=drawn.get(column.method, {"color": INK})["color"])  # fmt: skip
        write(left, y + LINE, remark, size=TEXT_PT, color=FAINT)
        for i, prompt in enumerate(prompts):
            y = top + i * row
            if place == 0:
                text = wrapped(prompt, 0.96 * width - 2 * SIDE, TEXT_PT, lines=1)
                write(left, y, text, size=TEXT_PT)
            box = (left / width, 1 - (y + LINE + tall) / height, cell / width, tall / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            axes.imshow(images[i, place], aspect="auto", interpolation="nearest")
            known = [] if np.isnan(psnr[i, place]) else [decibels(psnr[i, place])]
            text = ", ".join([*known, column.steps])
            write(left, y + LINE + tall + 0.03, text, size=TEXT_PT)
    return figure


def main(arguments: argparse.Namespace) -> None:
    scores = read_table(arguments.scores)
    columns = columns_of(scores, arguments.budget, arguments.ours)
    shown = select(scores, [c.method for c in columns], arguments.budget, arguments.prompts)
    # The reference leads the rows of each prompt, whether it has a column or not.
    shown = shown[shown["method"].isin([c.method for c in columns])]
    shown = shown.drop_duplicates(["prompt_index", "method"], keep="last")
    refuse_altered(shown)
    prompts = list(dict.fromkeys(shown["prompt"]))
    images = read_images(shown["image"])
    images = images.reshape(len(prompts), len(columns), *images.shape[1:])
    note = describe(columns, scores["prompt_index"].nunique(), arguments.setting)
    figure = draw(images, columns, prompts, psnr_of(shown), arguments.labels, note)
    save(figure, arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("strip", __doc__)
    parser.add_argument("--scores", required=True, help="one row an image: scores.csv")
    parser.add_argument("--budget", type=int, required=True, help="the number of full steps")
    parser.add_argument("--prompts", type=int, nargs="+", required=True, help="their indices")
    parser.add_argument("--ours", nargs="*", default=[OURS], help="this project's methods")
    run(main, parser, outputs=["out"], inputs=["scores"])

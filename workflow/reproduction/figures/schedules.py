"""Schedules: which steps each method computes in full, one row a method and budget.

A tick is a full step; the others are forecast. Above stand the sampler's timesteps, which are not
evenly spaced. The number beside a row is how many ticks it has. Methods that choose the same steps
at every budget share their rows. Fewer steps are no schedule of these steps, and are not shown.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eigencache.plan import Plan
from reproduction.figures._common import (
    FAINT,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    inches,
    looks,
    save,
    style,
    timestep_axis,
)

NAME_PT, COUNT_PT = 7, 6
ROW, GAP, LINE, LEFT = 0.11, 0.07, 0.125, 0.3  # inches: a row, between groups, a line, the counts
ENDS = (0.42, 0.42)  # inches for the axis above and below


@style()
def draw(plans: Mapping[str, Sequence[Plan]], setting: str = "") -> Figure:
    """Return the figure of each method's plans, by label.

    Args:
        plans: by label.
        setting: for the heading.

    Raises:
        ValueError: there is no plan, or they differ in their timesteps.
    """
    groups = grouped(plans)
    timesteps = next(iter(groups.values()))[0].timesteps
    names = [_lines(labels) for labels in groups]
    heights = [
        LINE * (text.count("\n") + 1) + ROW * len(rows) + GAP
        for text, rows in zip(names, groups.values(), strict=True)
    ]
    heading = Heading(
        "Which steps each method computes in full", setting,
        "A mark is a full step, and the number on the left counts them; all other steps are "
        "forecast. Methods that share their rows choose the same steps.",
    )  # fmt: skip
    above, below = heading.above(TWO_COLUMNS), heading.below(TWO_COLUMNS)
    height = sum(heights) + sum(ENDS) + above + below
    # Placed by hand, in inches, so that rows are equally high however many there are.
    figure = Figure(figsize=(TWO_COLUMNS, height))
    figure.set_layout_engine("none")
    heading.draw(figure)
    width = TWO_COLUMNS - LEFT - 0.1
    axes = figure.add_axes(
        (LEFT / TWO_COLUMNS, (ENDS[1] + below) / height, width / TWO_COLUMNS,
         sum(heights) / height)
    )  # fmt: skip
    axes.set(xlim=(-0.8, len(timesteps) - 0.2), ylim=(sum(heights), 0), yticks=[], xlabel="step")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    top = 0.0
    for (labels, rows), text, tall in zip(groups.items(), names, heights, strict=True):
        _group(axes, rows, text, top, bold=OURS in labels)
        top += tall
    timestep_axis(axes, timesteps)
    return figure


def grouped(plans: Mapping[str, Sequence[Plan]]) -> dict[tuple[str, ...], list[Plan]]:
    """Return plans by the labels of all methods that choose the same full steps.

    Raises:
        ValueError: there is no plan, or they differ in their timesteps.
    """
    every = [plan for of_method in plans.values() for plan in of_method]
    if not every:
        raise ValueError("no plans: nothing to draw")
    for plan in every:
        if not np.array_equal(plan.timesteps, every[0].timesteps):
            raise ValueError("the plans differ in their timesteps: they cannot share an axis")
    found = {}
    for label, of_method in plans.items():
        rows = sorted(of_method, key=lambda plan: sum(plan.full))
        found.setdefault(tuple(plan.full_steps for plan in rows), ([], rows))[0].append(label)
    return {tuple(labels): rows for labels, rows in found.values()}


def _lines(labels: Sequence[str]) -> str:
    """Return the labels, separated by commas, in lines that fit the figure's width."""
    width = TWO_COLUMNS - LEFT - 0.2
    weight = "bold" if OURS in labels else "normal"
    lines = []
    for label in labels:
        longer = f"{lines[-1]}, {label}" if lines else label
        if lines and inches(longer, NAME_PT, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(label)
    return ",\n".join(lines)


def _group(axes: Axes, plans: Sequence[Plan], text: str, top: float, bold: bool) -> None:
    """Draw the names of one group, at `top` inches from the top, and its rows below."""
    axes.annotate(
        text, (0, top + GAP / 2), xycoords=("axes fraction", "data"), va="top", size=NAME_PT,
        weight="bold" if bold else "normal", parse_math=False, zorder=3,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
    )  # fmt: skip
    first = top + GAP / 2 + LINE * (text.count("\n") + 1) + ROW / 2
    for i, plan in enumerate(plans):
        y = first + ROW * i
        axes.hlines(y, -0.5, len(plan) - 0.5, color="#e3e5e9", linewidth=0.6, zorder=1)
        axes.vlines(
            plan.full_steps, y - 0.36 * ROW, y + 0.36 * ROW, zorder=2, linewidth=1.8,
            color=looks([OURS])[OURS]["color"] if bold else "#3c4047",
        )  # fmt: skip
        axes.annotate(
            f"{sum(plan.full)}", (0, y), (-3, 0), xycoords=("axes fraction", "data"), ha="right",
            va="center_baseline", textcoords="offset points", size=COUNT_PT, color=FAINT,
            annotation_clip=False,
        )  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    plans = {}
    for path in map(Path, arguments.plans):
        plans.setdefault(path.parent.name, []).append(Plan.load(path))
    save(draw(plans, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("schedules", __doc__)
    parser.add_argument("--plans", nargs="+", required=True, help="files LABEL/BUDGET.safetensors")
    run(main, parser, outputs=["out"], inputs=["plans"])

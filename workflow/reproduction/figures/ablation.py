"""Ablation: how each factor changes the PSNR, one panel per factor, one line per budget.

The figure shows the PSNR to the full run relative to the factor's base, which is a ring on the zero
line: the mean over images of the difference to the base's image of the same prompt and noise, with
its 95 % bootstrap interval if there are enough images. The base's own PSNR is below each panel's
title. Lines join values that are numbers. Each panel has its own scale, of at least one decibel, so
that factors that do not matter look flat.
"""

import argparse
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reproduction.figures._common import (
    BUDGET_MARKERS,
    FAINT,
    TWO_COLUMNS,
    Heading,
    budget_colours,
    figure_parser,
    legend_below,
    letter,
    page,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

COLUMNS, CHARACTERS = 4, 25  # panels side by side, and how much text fits below one
TICK = 10  # characters of a value in one line
SPAN = 1.0  # decibels that a panel shows at least
NOTE = (
    "Above the dotted line a value is better than the base, the ring. Each panel has its own "
    "scale, of at least one decibel. Bars: 95 % bootstrap intervals of the paired difference."
)


@style()
def draw(table: pd.DataFrame, setting: str = "") -> Figure:
    """Return the figure of an ablation (`reproduction.stages.ablation`).

    Args:
        table: one row per factor, value and budget.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column, or a value to draw is missing.
    """
    columns = ["factor", "value", "base", "full_steps", "psnr", "gain", "gain_low", "gain_high"]
    require(table, columns, "ablation's rows")
    gaps = table.loc[~np.isfinite(table["gain"]), "value"]
    if len(gaps):
        raise ValueError(f"the ablation has no gain of {sorted(set(gaps))}")
    if pd.api.types.is_numeric_dtype(table["value"]):  # a CSV of numbers alone: 16, not 16.0
        table = table.assign(value=[f"{value:g}" for value in table["value"]])
    figure, panels = _grid(table, setting)
    for place, (axes, (factor, rows)) in enumerate(
        zip(panels, table.groupby("factor", sort=False), strict=True)
    ):
        _panel(axes, rows)
        _title(axes, f"{letter(place)}  {factor}", rows[rows["base"]])
    figure.supylabel("PSNR relative to the base (dB)", size=7.5)
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, ncols=len(labels))
    return figure


def _grid(table: pd.DataFrame, setting: str) -> tuple[Figure, list[Axes]]:
    """Return a figure and one panel per factor, twice as wide for many long values."""
    widths = [_width(rows) for _, rows in table.groupby("factor", sort=False)]
    columns = min(COLUMNS, sum(widths))
    places, row, column = [], 0, 0
    for width in widths:
        if column + width > columns:
            row, column = row + 1, 0
        places.append((row, slice(column, column + width)))
        column += width
    heading = Heading("How much each factor matters", setting, NOTE)
    figure = page(TWO_COLUMNS, 0.35 + 1.45 * (row + 1), heading)
    spec = figure.add_gridspec(row + 1, columns)
    return figure, [figure.add_subplot(spec[place]) for place in places]


def _width(rows: pd.DataFrame) -> int:
    """Return how many columns the values of a factor need below its panel: 1 or 2."""
    values = rows["value"].astype(str).unique()
    longest = max(len(word) for value in values for word in value.split())
    return 2 if longest * len(values) > CHARACTERS else 1


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw one factor: the values in their order, equally far apart, and the base as a ring."""
    values = list(rows["value"].astype(str).unique())
    budgets = sorted(rows["full_steps"].unique())
    colours = budget_colours(len(budgets))
    numbers = any(character.isdigit() for value in values for character in value)
    for i, budget in enumerate(budgets):
        points = rows[rows["full_steps"] == budget]
        x = np.arange(len(points)) + 0.06 * (2 * i - len(budgets) + 1)  # bars side by side
        look = {"color": colours[i], "marker": BUDGET_MARKERS[i % len(BUDGET_MARKERS)]}
        axes.errorbar(
            x, points["gain"], _bars(points), elinewidth=0.7, label=f"{budget} full steps",
            markersize=3, linestyle="-" if numbers else "none", **look,
        )  # fmt: skip
        if not numbers:
            axes.vlines(x, 0, points["gain"], color=look["color"], linewidth=1.5, alpha=0.35)
        base = points["base"].to_numpy()
        axes.plot(
            x[base], points["gain"][base], "o", markersize=7, color=look["color"],
            markerfacecolor="none", clip_on=False,
        )  # fmt: skip
    axes.axhline(0, color=FAINT, linewidth=0.6, linestyle=":", zorder=1.5)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(values)), [textwrap.fill(v, TICK) for v in values], size=6.5)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    low, high = axes.get_ylim()
    spare = max(SPAN - (high - low), 0) / 2
    axes.set_ylim(low - spare, high + spare)


def _bars(points: pd.DataFrame) -> np.ndarray:
    """Return how far each interval reaches below and above its value; nan draws no bar."""
    return np.abs(points[["gain_low", "gain_high"]].to_numpy().T - points["gain"].to_numpy())


def _title(axes: Axes, factor: str, base: pd.DataFrame) -> None:
    axes.set_title(factor, size=7.5, weight="bold", loc="left", pad=11)
    level = " · ".join(f"{psnr:.1f}" for psnr in base.sort_values("full_steps")["psnr"])
    axes.annotate(
        f"base: {level} dB", (0, 1), (0, 3), xycoords="axes fraction", size=6.5, color=FAINT,
        textcoords="offset points",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table), arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("ablation", __doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.ablation")
    run(main, parser, outputs=["out"], inputs=["table"])

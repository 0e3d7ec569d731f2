"""Costs: the seconds of a step and the memory of the cache, by tap.

Panel a shows what a full step and a skipped one take (medians over images, with their range) and,
as a line, what a step takes without a cache. Panel b shows the most megabytes that the cache holds.
The method is the same at each tap, so all differences are due to the tap.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reproduction.figures._common import (
    FAINT,
    INK,
    MEASURED,
    NAME_PT,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    legend_below,
    page,
    panel_title,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

STEPS = {
    "skipped_step_seconds": ("skipped step", {"markerfacecolor": "white", "markeredgewidth": 1.3}),
    "full_step_seconds": ("full step", {}),
}
UNCACHED, MEMORY = "uncached_step_seconds", "cache_mb"
ROW = 0.27  # inches between taps
NOTE = (
    "Points: medians over images; thin lines: their range. Both axes are logarithmic. A tap is the "
    "place in the network whose features are cached; the method is the same at every tap. At the "
    "output a skipped step runs nothing of the network, at the modules everything but attention "
    "and MLPs; full steps differ by the noise of timing."
)


@style()
def draw(table: pd.DataFrame, setting: str = "") -> Figure:
    """Return the figure of costs (`reproduction.stages.costs`).

    Args:
        table: one row per tap and image.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column, or a value is not positive.
    """
    columns = [*STEPS, UNCACHED, MEMORY]
    require(table, ["tap", "device", *columns], "costs' rows")
    if not (table[columns] > 0).all(axis=None):
        raise ValueError("the costs have values that are not positive, or are missing")
    of_taps = table.groupby("tap", sort=False)[columns]
    middle, low, high = of_taps.median(), of_taps.min(), of_taps.max()
    heading = Heading("What caching costs at each tap", setting, NOTE)
    figure = page(TWO_COLUMNS, 0.85 + ROW * len(middle), heading)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1), sharey=True)
    uncached = 1e3 * table[UNCACHED].median()
    left.axvline(uncached, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="without a cache")
    _join(left, 1e3 * middle[[*STEPS]])
    for column, (label, look) in STEPS.items():
        ends = 1e3 * np.stack([low[column], high[column]])
        _dots(left, 1e3 * middle[column], ends, label=label, color=MEASURED, **look)
    _dots(right, middle[MEMORY], None, color=FAINT)
    left.set_yticks(range(len(middle)), list(middle.index), parse_math=False)
    left.set_ylim(len(middle) - 0.4, -0.6)
    left.set_xlabel(f"milliseconds per step, on a {'GPU' if _on_gpu(table) else 'CPU'}")
    right.set_xlabel("megabytes in the cache")
    left.set_ylabel("tap")
    for place, (axes, text) in enumerate(((left, "Time of a step"), (right, "Memory"))):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        panel_title(axes, place, text)
    legend_below(figure, *left.get_legend_handles_labels(), ncols=3)
    return figure


def _on_gpu(table: pd.DataFrame) -> bool:
    return bool((table["device"] == "cuda").all())


def _join(axes: Axes, values: pd.DataFrame) -> None:
    """Join the two dots of each tap by a thin line."""
    axes.hlines(range(len(values)), values.min(axis=1), values.max(axis=1), color="#c9ced6",
                linewidth=1.4, zorder=1.8)  # fmt: skip


def _dots(axes: Axes, values: pd.Series, ends: np.ndarray | None, color: str, **look) -> None:
    """Draw a dot per tap on a logarithmic axis, with its range and with its value above it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    places = np.arange(len(values))
    if ends is not None:
        axes.hlines(places, *ends, color=color, linewidth=0.8)
    axes.plot(values, places, "o", color=color, markersize=5.5, **look)
    for x, y in zip(values, places, strict=True):
        axes.annotate(
            _rounded(x), (x, y), (0, 4), textcoords="offset points", ha="center", size=NAME_PT,
            annotation_clip=False, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
    # Room for numbers at both ends.
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, values.min() / 2), max(right, 2 * values.max()))


def _rounded(value: float) -> str:
    """Return a number with two digits that count, and no exponent."""
    digits = max(0, 1 - int(np.floor(np.log10(value))))
    return f"{value:.{digits}f}"


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table), arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("costs", __doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.costs")
    run(main, parser, outputs=["out"], inputs=["table"])

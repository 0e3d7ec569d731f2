"""Costs: the seconds of a step and the memory of the cache, by tap.

Left: the seconds of a full step and of a skipped one (medians over images, with their range); the
line is a step without a cache. Right: the most megabytes that the cache holds. The method is the
same at each tap, so that all differences are due to the tap. Both axes are logarithmic: compare the
numbers, not the areas.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from reproduction.figures._common import TWO_COLUMNS, require, save, style
from reproduction.tables.tables import read_table

STEPS = {
    "full_step_seconds": ("full step", {"color": "#0072B2"}),
    "skipped_step_seconds": ("skipped step", {"color": "#E69F00", "hatch": "////"}),
}
UNCACHED, MEMORY = "uncached_step_seconds", "cache_mb"
WIDTH = 0.38  # of a bar, where taps are 1 apart


@style()
def draw(table: pd.DataFrame) -> Figure:
    """Return the figure of costs (`reproduction.stages.costs`).

    Raises:
        ValueError: the table is empty or lacks a column, or a value is not positive.
    """
    columns = [*STEPS, UNCACHED, MEMORY]
    require(table, ["tap", "full_steps", "device", *columns], "costs' rows")
    if not (table[columns] > 0).all(axis=None):
        raise ValueError("the costs have values that are not positive, or are missing")
    taps = list(table["tap"].unique())
    of_taps = table.groupby("tap", sort=False)[columns]
    middle, low, high = of_taps.median(), of_taps.min(), of_taps.max()
    figure = Figure(figsize=(TWO_COLUMNS, 2.5))
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for i, (column, (label, look)) in enumerate(STEPS.items()):
        places, heights = np.arange(len(taps)) + (i - 0.5) * WIDTH, 1e3 * middle[column]
        reach = 1e3 * np.stack([middle[column] - low[column], high[column] - middle[column]])
        _bars(left, places, heights, reach, label=label, **look)
    uncached = 1e3 * table[UNCACHED].median()
    left.axhline(uncached, color="#111111", linewidth=0.8, linestyle="--", label="without a cache")
    left.set_ylabel(f"milliseconds a step ({'GPU' if _on_gpu(table) else 'CPU'})")
    _bars(right, np.arange(len(taps)), middle[MEMORY], None, width=0.6, color="#767676")
    right.set_ylabel("megabytes in the cache")
    for axes in (left, right):
        axes.set_xticks(range(len(taps)), taps)
        axes.set_xlabel(f"tap ({table['full_steps'].iloc[0]} full steps)")
        axes.grid(axis="x", visible=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _on_gpu(table: pd.DataFrame) -> bool:
    return bool((table["device"] == "cuda").all())


def _bars(axes: Axes, places, heights: pd.Series, reach, width: float = WIDTH, **look) -> None:
    """Draw bars on a logarithmic axis, each with its value above it and the reach of its error."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.bar(
        places, heights, width, yerr=reach, edgecolor="white", linewidth=0.4,
        error_kw={"linewidth": 0.7, "ecolor": "#111111"}, **look,
    )  # fmt: skip
    tops = heights if reach is None else heights + reach[1]
    for x, top, height in zip(places, tops, heights, strict=True):
        axes.annotate(
            _rounded(height), (x, top), (0, 1.5), textcoords="offset points", ha="center",
            size=6.5,
        )  # fmt: skip
    # Room below the least bar and above the numbers.
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(bottom, heights.min() / 3), max(top, 2 * tops.max()))


def _rounded(value: float) -> str:
    """Return a number with two digits that count, and no exponent."""
    digits = max(0, 1 - int(np.floor(np.log10(value))))
    return f"{value:.{digits}f}"


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table)), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("costs", description=__doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.costs")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["table"])

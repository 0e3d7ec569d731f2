"""Quality: the PSNR that plans predict against what unseen images come to.

A point is a plan of one model at one guidance scale (`benchmarks/quality.py`). Panel a has plans
that were calibrated on several prompts, panel b those that a probe of one prompt made. On the line
the two agree; the band is 1.5 dB to either side.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from reproduction.figures._common import (
    FAINT,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    legend_below,
    looks,
    page,
    panel_title,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

HEIGHT, BAND = 3.5, 1.5  # inches of the panels; dB
COLUMNS_READ = ["model", "guidance", "method", "predicted", "measured"]
PROBED = "EigenCache-design, probed"


@style()
def draw(table: pd.DataFrame, setting: str = "") -> Figure:
    """Return the figure.

    Args:
        table: one row per plan.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column.
    """
    require(table, COLUMNS_READ, "rows of the predictions")
    models, scales = list(dict.fromkeys(table["model"])), sorted(table["guidance"].unique())
    colours = {model: look["color"] for model, look in looks(models).items()}
    markers = dict(zip(scales, "os^vDP", strict=False))
    probed = table["method"] == PROBED
    parts = {"Calibrated plans": table[~probed], "Plans of one prompt": table[probed]}
    both = table[["predicted", "measured"]].to_numpy(float)
    low, high = both.min() - 2, both.max() + 2
    counts = [told(title, rows) for title, rows in parts.items()]
    note = " ".join([f"On the line the two agree; the band is {BAND} dB to either side.", *counts])
    heading = Heading("Predicted and measured quality", setting, note)
    figure = page(TWO_COLUMNS, HEIGHT, heading)
    for place, (title, rows) in enumerate(parts.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        ends = np.array([low, high])
        axes.fill_between(ends, ends - BAND, ends + BAND, color=FAINT, alpha=0.15, linewidth=0)
        axes.plot(ends, ends, color=FAINT, linewidth=0.8)
        for (model, scale), points in rows.groupby(["model", "guidance"], sort=False):
            axes.plot(
                points["predicted"], points["measured"], linestyle="none", markersize=4,
                marker=markers[scale], color=colours[model], markerfacecolor="none",
            )  # fmt: skip
        axes.set(xlim=ends, ylim=ends, xlabel="predicted PSNR (dB)", aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(10))
        panel_title(axes, place, title)
        if not place:
            axes.set_ylabel("measured PSNR (dB)")
    handles = [Line2D([], [], color=colours[m], linewidth=3) for m in models]
    handles += [
        Line2D([], [], linestyle="none", marker=markers[s], color=FAINT, markerfacecolor="none")
        for s in scales
    ]
    names = [*models, *(f"guidance {scale:g}" for scale in scales)]
    legend_below(figure, handles, names, len(names))
    return figure


def told(title: str, rows: pd.DataFrame) -> str:
    """Return how many of some plans are in the band, in a sentence."""
    off = (rows["predicted"] - rows["measured"]).abs()
    return f"{title}: {(off <= BAND).sum()} of {len(off)} are in the band."


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table), arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("quality", __doc__)
    parser.add_argument("--table", required=True, help="CSV of benchmarks/quality.py")
    run(main, parser, outputs=["out"], sources=["table"])

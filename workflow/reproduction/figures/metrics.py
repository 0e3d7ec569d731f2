"""Metrics: all metrics but the PSNR against the number of full steps, one panel per metric.

A point is the mean over images, or the value of the whole set of images, and a bar its 95 %
bootstrap interval over prompts. Metrics that need no reference vary far more between prompts than
between methods, so that one interval is drawn as a band, that of the full run. Methods look as in
`reproduction.figures.pareto`.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogitLocator, LogLocator, NullLocator

from eigencache.metrics import METRICS
from reproduction.figures._common import (
    TWO_COLUMNS,
    Heading,
    legend_below,
    looks_of,
    note_left_out,
    page,
    panel_title,
    save,
    stands_out,
    style,
)
from reproduction.figures.pareto import command, in_colour, runs_of, spread
from reproduction.tables.tables import read_table

COLUMNS, PANEL, LEGEND_LINE = 2, 1.9, 0.15  # inches high: a panel, a line of the legend
# Of metrics that crowd at one end: the scale, and the value that it cannot show.
SCALES = {
    "ssim": ("logit", 1.0),
    "lpips_alex": ("log", 0.0),
    "st_lpips_alex": ("log", 0.0),
    "frechet_lite0": ("log", 0.0),
}
FULL_LINE = {"color": "#6a6e76", "linestyle": ":", "linewidth": 0.9, "zorder": 1.5}
FULL_BAND = {"color": "#f1f2f4", "linewidth": 0, "zorder": 0.5}


@style()
def draw(
    summary: pd.DataFrame, highlight: Collection[str] = (), labels: Sequence[str] = (),
    setting: str = "",
) -> Figure:  # fmt: skip
    """Return the figure of a summary (`reproduction.stages.table`), of its first reference.

    Args:
        summary: one row per run and reference.
        highlight: as of `pareto.draw`.
        labels: all methods of the experiment, in the order that fixes their looks.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column, the full run, any other, or a metric
            besides the PSNR; a value to draw is missing; or a method to highlight is unknown.
    """
    metrics = [name for name in METRICS if name in summary.columns and name != "psnr"]
    if not metrics:
        raise ValueError("the summary has no metric besides psnr: nothing to draw")
    ends = [
        f"{name}_{end}" for name in metrics if not METRICS[name].whole for end in ("low", "high")
    ]
    rows, full = runs_of(summary, metrics, ends)
    drawn = looks_of(rows["method"], labels, in_colour(rows, highlight))
    unpaired = any(not METRICS[name].paired for name in metrics)
    columns = min(COLUMNS, len(metrics))
    lines = ceil((len(drawn) + unpaired) / 4)
    height = PANEL * ceil(len(metrics) / columns) + 0.15 + LEGEND_LINE * lines
    note = (
        "Bars: 95 % bootstrap intervals over prompts; metrics of a whole set of images have none. "
        f"{scales_note(metrics)}"
    )
    heading = Heading("The other metrics against full steps", setting, note.strip())
    figure = page(TWO_COLUMNS, height, heading)
    panels = figure.subplots(ceil(len(metrics) / columns), columns, squeeze=False).ravel()
    for place, (axes, name) in enumerate(zip(panels, metrics, strict=False)):
        _panel(axes, rows, name, drawn)
        panel_title(axes, place, METRICS[name].label)
        if not METRICS[name].paired:
            axes.axhline(full[name], **FULL_LINE)
            axes.axhspan(full[f"{name}_low"], full[f"{name}_high"], **FULL_BAND)
        axes.set_xscale("log")
        axes.set_xticks(spread(rows["full_steps"], 1.12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"full steps, of {int(full['num_steps'])}")
    for axes in panels[len(metrics) :]:
        axes.remove()
    handles, texts = _entries(drawn, unpaired)
    legend_below(figure, handles, texts, ncols=min(4, len(texts)))
    return figure


def scales_note(metrics: Sequence[str]) -> str:
    """Return which metrics are not on a linear scale, in a sentence; nothing if all are."""
    of_scale = {
        scale: [METRICS[name].label for name in metrics if SCALES.get(name, ("", 0))[0] == scale]
        for scale in ("log", "logit")
    }
    words = {"log": "Logarithmic", "logit": "Logit"}
    said = [f"{words[scale]} scale: {', '.join(k)}." for scale, k in of_scale.items() if k]
    return " ".join(said)


def _panel(
    axes: Axes, rows: pd.DataFrame, name: str, drawn: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw one line per method; say how many points do not fit on the axes."""
    scale, unshown = SCALES.get(name, ("linear", np.inf))
    axes.set_yscale(scale)
    shown = np.isfinite(rows[name]) & (rows[name] != unshown)
    for method, points in rows[shown].groupby("method", sort=False):
        points = points.sort_values("full_steps")
        look, x = drawn[method], points["full_steps"]
        axes.plot(x, points[name], label=method, **look)
        # In grey, and where all are alike, intervals would hide what stands out.
        if stands_out(look) and METRICS[name].paired and f"{name}_low" in points:
            axes.vlines(x, points[f"{name}_low"], points[f"{name}_high"], color=look["color"],
                        linewidth=0.7, alpha=0.5, zorder=look["zorder"] - 0.1)  # fmt: skip
    note_left_out(axes, int((~shown).sum()), f"{unshown:g}".replace("inf", "infinity"))
    if scale == "logit":
        axes.yaxis.set_major_locator(LogitLocator(nbins="auto"))
    if scale == "log":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    if scale != "linear":
        axes.yaxis.set_major_formatter(FuncFormatter(_decimal))
        axes.yaxis.set_minor_locator(NullLocator())
    better = "higher is better →" if METRICS[name].higher else "← lower is better"
    axes.set_ylabel(better, size=7)


def _decimal(value: float, _) -> str:
    """Return a tick as a decimal, never as a power of ten."""
    return np.format_float_positional(value, 6, fractional=False, trim="-")


def _entries(
    drawn: Mapping[str, Mapping[str, Any]], unpaired: bool
) -> tuple[list[Line2D], list[str]]:
    """Return the handles and texts of the legend, what stands out first."""
    labels = sorted(drawn, key=lambda label: not stands_out(drawn[label]))
    handles = [Line2D([], [], **drawn[label]) for label in labels]
    if unpaired:
        handles.append(Line2D([], [], **FULL_LINE))
        labels.append("full run (band: its interval)")
    return handles, labels


def main(arguments: argparse.Namespace) -> None:
    summary = read_table(arguments.summary)
    save(draw(summary, arguments.highlight, arguments.labels, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    run(main, command("metrics", __doc__), outputs=["out"], inputs=["summary"])

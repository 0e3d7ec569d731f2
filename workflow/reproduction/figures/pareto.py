"""Pareto: image quality against measured speed-up, one panel per metric, one line per method.

A point is a budget: its quality is the mean over images, its speed-up the median of paired times,
and its bars are 95 % bootstrap intervals over prompts (metrics of whole sets have none). Each
vertical axis says which way is better; faster is always to the right. A method is better if its
line is on the better side or further to the right. Metrics without a reference vary far more
between prompts than between methods, so the interval is drawn once, as a band: that of the full
run, whose mean is the dotted line. If there are many methods, some are in colour with their
intervals: ours, the baseline, and those that lag least behind the best or are named; the rest are
grey and differ in their markers.
"""

import argparse
from collections.abc import Collection, Sequence
from math import ceil

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogitLocator,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from eigencache.metrics import METRICS
from eigencache.plan import FEWER_STEPS, FULL
from reproduction.figures._common import (
    OURS,
    TWO_COLUMNS,
    looks,
    note_left_out,
    of_first_reference,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

COLOURED, BEST = 9, 5  # methods that can all be in colour, and of more, how many of the best are
PANEL, LEGEND_LINE = 1.95, 0.15  # inches high: a panel, a line of the legend
# Of metrics that crowd at one end: the scale, and the value that it cannot show.
SCALES = {
    "ssim": ("logit", 1.0),
    "lpips_alex": ("log", 0.0),
    "st_lpips_alex": ("log", 0.0),
    "frechet_lite0": ("log", 0.0),
}
FULL_LINE = {"color": "#767676", "linestyle": ":", "linewidth": 0.8, "zorder": 1.5}
FULL_BAND = {"color": "#f0f0f0", "linewidth": 0, "zorder": 0.5}
# Ticks of speed-up; those that are in view.
SPEEDUPS = (1, 1.2, 1.5, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120)


@style()
def draw(summary: pd.DataFrame, highlight: Collection[str] = (), cost: str = "speedup") -> Figure:
    """Return the figure of a summary (`reproduction.stages.table`), of its first reference.

    Args:
        summary: one row per run and reference.
        highlight: if there are many methods, those in colour besides ours and the baseline; if
            empty, the best are chosen.
        cost: what the horizontal axes show: "speedup" or "full_steps".

    Raises:
        ValueError: the table is empty or lacks a column, the full run or any other; a value to
            draw is missing; or a method to highlight is unknown.
    """
    rows, reference = of_first_reference(summary)
    metrics = [name for name in METRICS if name in rows.columns]
    each = [name for name in metrics if not METRICS[name].whole]
    columns = ["run", "method", "num_steps", "full_steps", "baseline", "psnr"]
    ends = [f"{name}_{end}" for name in (*each, "speedup") for end in ("low", "high")]
    require(rows, [*columns, "speedup", *ends], "summary's rows")
    full = rows[rows["run"] == FULL]
    rows = rows[~rows["run"].isin([FULL, reference])]
    if full.empty or rows.empty:
        raise ValueError(f"the summary needs the run {FULL!r} and at least one other")
    _refuse_gaps(rows, metrics)
    drawn = looks(rows["method"], in_colour(rows, highlight))
    figure, panels, legend = _grid(len(metrics), len(drawn))
    for axes, name in zip(panels, metrics, strict=True):
        _panel(axes, rows, cost, name, drawn)
        if not METRICS[name].paired:
            axes.axhline(full[name].iloc[0], **FULL_LINE)
            axes.axhspan(full[f"{name}_low"].iloc[0], full[f"{name}_high"].iloc[0], **FULL_BAND)
    for axes in panels:
        _label_cost(axes, rows, cost, full["num_steps"].iloc[0])
    legend(*_entries(drawn, any(not METRICS[name].paired for name in metrics)))
    return figure


def in_colour(rows: pd.DataFrame, highlight: Collection[str] = ()) -> set[str]:
    """Return the methods that stand out: all if they are few; else ours, the baseline, the best.

    The best lag least: a run lags by the PSNR that it has less than the best run that is at least
    as fast, and a method by the mean over its runs. Only methods with more than one run, which have
    a line, are chosen.

    Raises:
        ValueError: a method to highlight is unknown.
    """
    methods = list(dict.fromkeys(rows["method"]))
    unknown = sorted(set(highlight) - set(methods))
    if unknown:
        raise ValueError(f"no method {unknown} to highlight; there are {methods}")
    if len(methods) <= COLOURED:
        return set(methods)
    baselines = rows.loc[rows["run"].isin(rows["baseline"]), "method"]
    named = {OURS, FEWER_STEPS, *baselines}
    if highlight:
        return named | set(highlight)
    psnr, speedup = rows["psnr"].to_numpy(), rows["speedup"].to_numpy()
    psnr = np.minimum(psnr, psnr[np.isfinite(psnr)].max(initial=0))
    best = np.where(speedup >= speedup[:, None], psnr, -np.inf).max(1)
    lag = pd.Series(best - psnr, index=rows["method"]).groupby(level=0, sort=False)
    others = lag.mean()[lag.size() > 1].drop(named, errors="ignore")
    return named | set(others.sort_values(kind="stable").index[:BEST])


def _refuse_gaps(rows: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Raise a ValueError that names a run of which a value is missing."""
    for column in ("speedup", *metrics):
        gaps = rows.loc[rows[column].isna(), "run"]
        if len(gaps):
            raise ValueError(f"the summary has no {column} of runs {sorted(gaps)}")


def _grid(count: int, methods: int):
    """Return a figure, `count` panels, and what draws its legend: in a free place, or below."""
    columns = count if count < 4 else 2 if count == 4 else 3
    rows = ceil(count / columns)
    free = count < rows * columns and methods <= COLOURED
    ncols = min(4, methods)
    below = 0 if free else LEGEND_LINE * ceil((methods + 2) / ncols)
    width = TWO_COLUMNS if columns > 1 else TWO_COLUMNS / 2
    figure = Figure(figsize=(width, rows * PANEL + 0.25 + below))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).ravel())
    for axes in panels[count + free :]:
        axes.remove()
    if free:
        panels[count].set_axis_off()
        return figure, panels[:count], lambda h, t: panels[count].legend(h, t, loc="center")
    return (
        figure,
        panels[:count],
        lambda h, t: figure.legend(h, t, loc="outside lower center", ncols=ncols),
    )


def _panel(axes: Axes, rows: pd.DataFrame, cost: str, name: str, drawn) -> None:
    """Draw one line per method; say how many points do not fit on the axes."""
    scale, unshown = SCALES.get(name, ("linear", np.inf))
    axes.set_yscale(scale)
    shown = np.isfinite(rows[name]) & (rows[name] != unshown)
    for method, points in rows[shown].groupby("method", sort=False):
        points = points.sort_values(cost)
        look = drawn[method]
        axes.plot(points[cost], points[name], label=method, **look)
        # In grey, and where all are alike, intervals would hide what stands out.
        if look["zorder"] > 2 and METRICS[name].paired:
            _intervals(axes, points, cost, name, look)
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
    axes.set_ylabel(f"{METRICS[name].label}\n{better}", size=7)


def _decimal(value: float, _) -> str:
    """Return a tick as a decimal, never as a power of ten."""
    return np.format_float_positional(value, 6, fractional=False, trim="-")


def _intervals(axes: Axes, points: pd.DataFrame, cost: str, name: str, look) -> None:
    """Draw the bars of those intervals that the table has, as far as they are finite."""
    bars = {"color": look["color"], "linewidth": 0.6, "alpha": 0.55, "zorder": look["zorder"] - 0.1}
    x, y = points[cost], points[name]
    if f"{name}_low" in points:
        axes.vlines(x, points[f"{name}_low"], points[f"{name}_high"], **bars)
    if cost == "speedup":
        axes.hlines(y, points["speedup_low"], points["speedup_high"], **bars)


def _label_cost(axes: Axes, rows: pd.DataFrame, cost: str, num_steps: int) -> None:
    """Label a cost axis, which is logarithmic, since a budget is a share of all steps."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=True)
    if cost == "full_steps":
        axes.set_xticks(spread(rows["full_steps"], 1.12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"full steps (of {num_steps})")
        return
    low, high = axes.get_xlim()
    inside = [tick for tick in SPEEDUPS if low <= tick <= high]
    ticks = spread(inside, (high / low) ** (1 / 6))
    axes.xaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 2 else MaxNLocator(3))
    axes.xaxis.set_major_formatter("{x:g}×")  # noqa: RUF001
    axes.set_xlabel("measured speed-up")


def spread(values: Collection[float], ratio: float) -> list[float]:
    """Return those of some numbers, ascending, that lie apart by a ratio, to be ticks."""
    kept = []
    for value in sorted(set(values)):
        if not kept or value >= ratio * kept[-1]:
            kept.append(value)
    return kept


def _entries(drawn, unpaired: bool) -> tuple[list[Line2D], list[str]]:
    """Return the handles and texts of the legend, what stands out first."""
    labels = sorted(drawn, key=lambda label: -(drawn[label]["zorder"] > 2))
    handles = [Line2D([], [], **drawn[label]) for label in labels]
    if unpaired:
        handles.append(Line2D([], [], **FULL_LINE))
        labels.append("full run (band: its interval)")
    return handles, labels


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.summary), arguments.highlight), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("pareto", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--highlight", nargs="*", default=[], help="methods to be in colour")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["summary"])

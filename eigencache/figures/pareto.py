"""Pareto: image quality against cost, one line a method, one point a budget.

Rows are quality against the full run (PSNR in dB, SSIM; means over images), columns are cost: full
steps, and the measured speed-up (median over images, paired). Higher is better everywhere. In the
left column a method is better if its line is above; in the right column if it is above or further
to the right, which differs where a method's own work per skipped step is not negligible. The full
run is the reference: infinite PSNR, SSIM 1, speed-up 1.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from eigencache.figures import TWO_COLUMNS, looks, note_infinite, require, save, style
from eigencache.plan import FULL
from eigencache.stages import run
from eigencache.tables import read_table

QUALITY = {"psnr": "PSNR to full run (dB)", "ssim": "SSIM to full run"}
COST = ("full_steps", "speedup")


@style()
def draw(summary: pd.DataFrame) -> Figure:
    """Return the figure of a summary (`eigencache.stages.table`).

    Raises:
        ValueError: the table is empty or lacks a column, the full run or any other; or a value to
            draw is missing.
    """
    require(summary, ["run", "method", "num_steps", *COST, *QUALITY], "summary's rows")
    reference = summary[summary["run"] == FULL]
    rows = summary[summary["run"] != FULL]
    if reference.empty or rows.empty:
        raise ValueError(f"the summary needs the run {FULL!r} and at least one other")
    _refuse_gaps(rows)
    figure = Figure(figsize=(TWO_COLUMNS, 4.3))
    panels = figure.subplots(len(QUALITY), len(COST), sharex="col", sharey="row")
    for axes_row, metric in zip(panels, QUALITY, strict=True):
        for axes, cost in zip(axes_row, COST, strict=True):
            _lines(axes, rows, cost, metric)
        axes_row[0].set_ylabel(QUALITY[metric])
    _label_costs(panels[-1], rows, reference["num_steps"].iloc[0])
    figure.align_ylabels(panels[:, 0])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _refuse_gaps(rows: pd.DataFrame) -> None:
    """Raise a ValueError that names a run of which a value is missing."""
    for column in (*COST, *QUALITY):
        gaps = rows.loc[rows[column].isna(), "run"]
        if len(gaps):
            raise ValueError(f"the summary has no {column} of runs {sorted(gaps)}")


def _lines(axes: Axes, rows: pd.DataFrame, cost: str, metric: str) -> None:
    """Draw one line a method; say how many points are infinite, since those cannot be drawn."""
    drawn = looks(rows["method"])
    for method, points in rows.groupby("method", sort=False):
        points = points.sort_values(cost)
        axes.plot(points[cost], points[metric], label=method, **drawn[method])
    note_infinite(axes, int(np.isinf(rows[metric]).sum()))


def _label_costs(axes_row, rows: pd.DataFrame, num_steps: int) -> None:
    """Label the two cost axes; both are logarithmic, since a budget is a share of all steps."""
    steps, speedup = axes_row
    for axes in axes_row:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    steps.xaxis.set_major_locator(FixedLocator(sorted(set(rows["full_steps"]))))
    steps.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    steps.set_xlabel(f"full steps (of {num_steps})")
    speedup.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    speedup.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))  # noqa: RUF001
    speedup.set_xlabel(f"measured speed-up over the full run of {num_steps} steps")


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.summary)), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("pareto", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of eigencache.stages.table")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["summary"])

"""Quality: the PSNR that plans predict, from calibration prompts, against what was measured.

One point per run whose plan predicts its PSNR, with the 95 % bootstrap interval over prompts of the
measured mean. On the diagonal the prediction is exact; inside the band it is right to a decibel.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduction.figures._common import (
    ONE_COLUMN,
    looks,
    note_left_out,
    of_first_reference,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

BAND = 1.0  # decibels
APART = 0.045  # of the axis: what numbers keep from each other


@style()
def draw(summary: pd.DataFrame) -> Figure:
    """Return the figure of a summary (`reproduction.stages.table`), of its first reference.

    Raises:
        ValueError: the table lacks a column, or no run predicts its PSNR.
    """
    columns = ["run", "method", "full_steps", "psnr", "psnr_low", "psnr_high", "predicted_psnr"]
    require(summary, columns, "summary's rows")
    rows, _ = of_first_reference(summary)
    drawn = looks(rows["method"])
    rows = rows[rows["predicted_psnr"].notna()]
    if rows.empty:
        raise ValueError("no run of the summary has a predicted PSNR: nothing to draw")
    finite = np.isfinite(rows[["psnr", "predicted_psnr"]]).all(axis=1)
    if not finite.any():
        raise ValueError("every run that predicts its PSNR agrees with the full run: none to draw")
    infinite, rows = int((~finite).sum()), rows[finite]
    figure = Figure(figsize=(ONE_COLUMN, ONE_COLUMN))
    axes = figure.subplots()
    every = rows[["psnr", "psnr_low", "psnr_high", "predicted_psnr"]].to_numpy()
    every = every[np.isfinite(every)]
    ends = np.array([np.floor(every.min() - 2), np.ceil(every.max() + 2)])
    axes.fill_between(ends, ends - BAND, ends + BAND, color="0.9", lw=0, label="within 1 dB")
    axes.plot(ends, ends, color="0.6", lw=0.8, zorder=1)
    for method, points in rows.groupby("method", sort=False):
        look = {**drawn[method], "linestyle": ""}
        x = points["predicted_psnr"]
        axes.vlines(x, points["psnr_low"], points["psnr_high"], color=look["color"], lw=0.8)
        axes.plot(x, points["psnr"], label=method, **look)
    _numbers(axes, rows, ends)
    note_left_out(axes, infinite)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("PSNR predicted from calibration prompts (dB)")
    axes.set_ylabel("PSNR measured on evaluation prompts (dB)")
    axes.legend(loc="upper left", title="numbers: full steps", title_fontsize=7)
    return figure


def _numbers(axes: Axes, rows: pd.DataFrame, ends: np.ndarray) -> None:
    """Write the number of full steps to the lower right of each point, without overlaps."""
    least = APART * (ends[1] - ends[0])
    below = -np.inf
    for row in rows.sort_values(["psnr", "predicted_psnr"]).itertuples():
        y = max(row.psnr, below + least)
        below = y
        axes.annotate(
            f"{row.full_steps}", (row.predicted_psnr, y), (5, -2), textcoords="offset points",
            va="top", size=7,
        )  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.summary)), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("quality", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["summary"])

"""Quality: the PSNR that plans predict, from calibration prompts, against what was measured.

A point a run whose plan predicts its PSNR; on the diagonal the prediction is right, and inside the
band it is right to a decibel.
"""

import argparse

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eigencache.figures import ONE_COLUMN, looks, note_infinite, require, save, style
from eigencache.stages import run
from eigencache.tables import read_table

BAND = 1.0  # decibels


@style()
def draw(summary: pd.DataFrame) -> Figure:
    """Return the figure of a summary (`eigencache.stages.table`).

    Raises:
        ValueError: the table lacks a column, or no run predicts its PSNR.
    """
    require(summary, ["run", "method", "full_steps", "psnr", "predicted_psnr"], "summary's rows")
    rows = summary[summary["predicted_psnr"].notna()]
    if rows.empty:
        raise ValueError("no run of the summary has a predicted PSNR: nothing to draw")
    finite = np.isfinite(rows[["psnr", "predicted_psnr"]]).all(axis=1)
    if not finite.any():
        raise ValueError("every run that predicts its PSNR agrees with the full run: none to draw")
    infinite, rows = int((~finite).sum()), rows[finite]
    figure = Figure(figsize=(ONE_COLUMN, ONE_COLUMN))
    axes = figure.subplots()
    both = rows[["psnr", "predicted_psnr"]].to_numpy()
    ends = np.array([np.floor(both.min() - 2), np.ceil(both.max() + 2)])
    axes.fill_between(ends, ends - BAND, ends + BAND, color="0.9", lw=0, label="within 1 dB")
    axes.plot(ends, ends, color="0.6", lw=0.8, zorder=1)
    drawn = looks(rows["method"])
    for method, points in rows.groupby("method", sort=False):
        look = {**drawn[method], "linestyle": ""}
        axes.plot(points["predicted_psnr"], points["psnr"], label=method, **look)
        for row in points.itertuples():
            axes.annotate(
                f"{row.full_steps}", (row.predicted_psnr, row.psnr), (5, -3),
                textcoords="offset points", va="top", size=7,
            )  # fmt: skip
    note_infinite(axes, infinite)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("PSNR predicted from calibration prompts (dB)")
    axes.set_ylabel("PSNR measured on evaluation prompts (dB)")
    axes.legend(loc="upper left", title="numbers: full steps", title_fontsize=7)
    return figure


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.summary)), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("quality", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of eigencache.stages.table")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["summary"])

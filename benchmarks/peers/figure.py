"""Quality against the cost of fitting, from data/benchmarks/peers.csv; one panel per budget.

    python -m benchmarks.peers.figure --out figures/peers.pdf figures/peers.png

A point is a fitted method. The horizontal axis is what its fit took: calls of the network, one for
each image, forward and backward alike. The dashed line is the best method that needs no fit; those
that still compute half of the network are left out.
"""

import argparse

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.tables import PEERS
from reproduction.figures._common import OURS, TWO_COLUMNS, looks, require, save, style

LINE = {"color": "#767676", "linestyle": "--", "linewidth": 1.0, "zorder": 1.5}
BEST = "best without a fit"


@style()
def draw(table: pd.DataFrame) -> Figure:
    """Return the figure.

    Args:
        table: the rows of `compare.py`.

    Raises:
        ValueError: the table lacks a column, or has no fitted method.
    """
    require(table, ["method", "budget", "psnr", "compute", "fit_calls"], "peers' rows")
    # Where the cost is open, it is not known.
    calls = table["fit_calls"] + table["fit_backward_calls"].fillna(0)
    table = table.assign(calls=calls)
    fitted = table[calls > 0]
    require(fitted, [], "peers' fitted rows")
    budgets = sorted(fitted["budget"].unique())
    drawn = {
        method: {**look, "linestyle": "none"}
        for method, look in looks([OURS, *fitted["method"]]).items()
    }
    figure = Figure(figsize=(TWO_COLUMNS, 2.6))
    panels = figure.subplots(1, len(budgets), squeeze=False, sharex=True)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        rows = fitted[fitted["budget"] == budget]
        for row in rows.itertuples():
            axes.plot(row.calls, row.psnr, **drawn[row.method])
        free = table[(table["budget"] == budget) & (table["calls"] == 0) & (table["compute"] < 0.5)]
        if len(free):
            axes.axhline(free["psnr"].max(), **LINE)
        axes.set_xscale("log")
        axes.set_title(f"{budget} full steps", loc="left")
        axes.set_xlabel("network calls of the fit")
    panels[0].set_ylabel("PSNR in dB")
    shown = [method for method in drawn if method in set(fitted["method"])]
    handles = [Line2D([], [], **drawn[method]) for method in shown] + [Line2D([], [], **LINE)]
    figure.legend(handles, [*shown, BEST], loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser("figure", description=__doc__)
    parser.add_argument("--table", default=PEERS, help="CSV that `run` makes")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    arguments = parser.parse_args()
    save(draw(pd.read_csv(arguments.table)), arguments.out)

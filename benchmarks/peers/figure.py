"""Quality against the cost of fitting, from data/benchmarks/peers.csv; one panel per budget.

    python -m benchmarks.peers.figure --out figures/benchmarks/peers.png

A point is a fitted method. The horizontal axis is what its fit took: calls of the network, one for
each image, forward and backward alike. The dashed line is the best method that needs no fit; those
that still compute half of the network are left out.
"""

import argparse

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.tables import PEERS
from reproduction.figures._common import (
    FAINT,
    OURS,
    TWO_COLUMNS,
    Heading,
    legend_below,
    looks,
    page,
    panel_title,
    require,
    save,
    style,
)

COLUMNS_READ = ["method", "budget", "prompts", "psnr", "compute", "fit_calls"]
HEIGHT = 2.9  # inches of the panels and their legend
LINE = {"color": FAINT, "linestyle": "--", "linewidth": 1.0, "zorder": 1.5}
BEST = "best without a fit"
NOTE = (
    "A fit is a training, a calibration or the search for a threshold; its calls are of one image "
    "each, forward and backward alike. Methods that compute half of the full run or more are left "
    "out of the dashed line."
)


@style()
def draw(table: pd.DataFrame) -> Figure:
    """Return the figure.

    Args:
        table: the rows of `compare.py`.

    Raises:
        ValueError: the table lacks a column, or has no fitted method.
    """
    require(table, COLUMNS_READ, "peers' rows")
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
    prompts = "/".join(f"{count}" for count in sorted(table["prompts"].unique()))
    setting = f"emoji-flux, 50 sampler steps, {prompts} evaluation prompts"
    figure = page(TWO_COLUMNS, HEIGHT, Heading("Quality against the cost of a fit", setting, NOTE))
    panels = figure.subplots(1, len(budgets), squeeze=False, sharex=True)[0]
    for place, (axes, budget) in enumerate(zip(panels, budgets, strict=True)):
        rows = fitted[fitted["budget"] == budget]
        for row in rows.itertuples():
            axes.plot(row.calls, row.psnr, **drawn[row.method])
        free = table[(table["budget"] == budget) & (table["calls"] == 0) & (table["compute"] < 0.5)]
        if len(free):
            axes.axhline(free["psnr"].max(), **LINE)
        axes.set_xscale("log")
        panel_title(axes, place, f"{budget} full steps")
        axes.set_xlabel("network calls")
    panels[0].set_ylabel("PSNR to the full run (dB)")
    shown = [method for method in drawn if method in set(fitted["method"])]
    handles = [Line2D([], [], **drawn[method]) for method in shown] + [Line2D([], [], **LINE)]
    legend_below(figure, handles, [*shown, BEST], 4)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser("figure", description=__doc__)
    parser.add_argument("--table", default=PEERS, help="CSV that `run` makes")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    arguments = parser.parse_args()
    save(draw(pd.read_csv(arguments.table)), arguments.out)

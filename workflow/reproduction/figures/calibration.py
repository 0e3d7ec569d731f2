"""Calibration: image quality against the number of calibration runs, one panel per way of planning.

The figure shows the PSNR to the full run, a mean over images, with the 95 % interval of its
difference to the base (the ring, whose level is the dotted line): where a bar misses the line, the
difference is significant. Images are compared in pairs of the same prompt and noise, so that the
intervals show the effect of the runs, not the spread over prompts. One line per budget.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reproduction.figures._common import (
    BUDGET_MARKERS,
    TWO_COLUMNS,
    Heading,
    budget_colours,
    figure_parser,
    legend_below,
    page,
    panel_title,
    require,
    save,
    style,
)
from reproduction.tables.tables import read_table

NOTE = (
    "Rings and dotted lines: the base. Bars: 95 % bootstrap intervals of the difference to it, "
    "image by image; where a bar misses the dotted line, the difference is beyond chance."
)


@style()
def draw(table: pd.DataFrame, factors: Sequence[str], setting: str = "") -> Figure:
    """Return the figure of some factors of an ablation (`reproduction.stages.ablation`).

    Args:
        table: of the ablation.
        factors: whose values are numbers of calibration runs.
        setting: for the heading.

    Raises:
        ValueError: the table is empty, or lacks a column or a factor; or a factor's value is not a
            number.
    """
    columns = ["factor", "value", "base", "full_steps", "psnr", "gain", "gain_low", "gain_high"]
    require(table, columns, "ablation's rows")
    missing = [factor for factor in factors if factor not in set(table["factor"])]
    if missing or not factors:
        raise ValueError(
            f"the ablation has no factors {missing}; it has {list(table['factor'].unique())}"
        )
    heading = Heading("How many calibration runs are enough", setting, NOTE)
    figure = page(TWO_COLUMNS, 2.5, heading)
    panels = figure.subplots(1, len(factors), squeeze=False).ravel()
    for place, (axes, factor) in enumerate(zip(panels, factors, strict=True)):
        _panel(axes, _numbered(table[table["factor"] == factor], factor))
        panel_title(axes, place, factor)
        axes.set_xlabel("calibration runs")
    panels[0].set_ylabel("PSNR to the full run (dB)")
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, ncols=4)
    return figure


def _numbered(rows: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Return a factor's rows with numbers for values, ascending."""
    values = pd.to_numeric(rows["value"], errors="coerce")
    if values.isna().any() or (values <= 0).any():
        raise ValueError(
            f"{factor}: {list(rows['value'].unique())} are not all numbers of calibration runs"
        )
    return rows.assign(value=values).sort_values("value")


def intervals(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each gain's interval reaches below and above it; 0 if there is none."""
    below, above = rows["gain"] - rows["gain_low"], rows["gain_high"] - rows["gain"]
    return below.fillna(0).to_numpy(), above.fillna(0).to_numpy()


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw one line per budget over a logarithmic axis."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(rows["value"]))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    colours = budget_colours(rows["full_steps"].nunique())
    for i, (budget, points) in enumerate(rows.groupby("full_steps")):
        look = {"color": colours[i], "marker": BUDGET_MARKERS[i % len(BUDGET_MARKERS)]}
        axes.errorbar(
            points["value"], points["psnr"], intervals(points), elinewidth=0.8, capsize=2,
            capthick=0.8, markersize=3.5, label=f"{budget} full steps", **look,
        )  # fmt: skip
        base = points[points["base"]]
        axes.plot(
            base["value"], base["psnr"], "o", markersize=8, color=look["color"],
            markerfacecolor="none", clip_on=False,
        )  # fmt: skip
        for level in base["psnr"]:
            axes.axhline(level, color=look["color"], linewidth=0.7, linestyle=":", zorder=1.5)
    axes.margins(x=0.08)


def main(arguments: argparse.Namespace) -> None:
    figure = draw(read_table(arguments.table), arguments.factors, arguments.setting)
    save(figure, arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("calibration", __doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.ablation")
    parser.add_argument("--factors", nargs="+", required=True, help="of calibration runs")
    run(main, parser, outputs=["out"], inputs=["table"])

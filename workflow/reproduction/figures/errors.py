"""Errors: what each method misses at every step, measured on prompts, and what was predicted.

Panel a shows the cached run (closed loop): the root-mean-square difference between its latents
after each step and those of the full run, in units of the initial noise. Panel b shows single
forecasts (open loop): the relative error of a forecast from the features of a full run, at the
method's tap. Lines are medians over prompts; in each panel the band is the range of ours. Thin
dotted lines are predictions from the weights and the calibrated kernel alone. Ticks below panel a
are the full steps of ours.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from reproduction.figures._common import (
    INK,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    label_ends,
    looks_of,
    marking_lone,
    name_inches,
    page,
    panel_title,
    require,
    save,
    stands_out,
    style,
)
from reproduction.tables.tables import read_table

COLOURED, BEST, HEIGHT = 9, 7, 3.1  # inches high: the panels
QUANTITIES = {
    "latents": ("Errors in the cached run", "error of the latents / initial noise"),
    "forecast": ("Each forecast by itself", "error / size of the features"),
}
COLUMNS_READ = ["label", "full_steps", "step", "full", "prompt_index", "quantity", "value"]
DOTS = (0, (1, 1.2))
NOTE = (
    "Lower is better. Panel a decides the image: each forecast starts from where the cached run "
    "really is. In panel b every forecast is made from an undisturbed full run. A plan fitted in "
    "closed loop is not meant to be good there: it corrects the sum of a gap's forecasts, not "
    "each of them, so single forecasts are poor while the latents come back at every full step."
)


@style()
def draw(table: pd.DataFrame, labels: Sequence[str] = (), setting: str = "") -> Figure:
    """Return the figure of errors (`reproduction.stages.errors`).

    Args:
        table: one row per method, step, quantity and prompt; those without a prompt are predicted.
        labels: all methods of the experiment, in the order that fixes their looks.
        setting: for the heading.

    Raises:
        ValueError: the table is empty or lacks a column, or nothing of it was measured.
    """
    require(table, COLUMNS_READ, "errors' rows")
    measured = table[table["prompt_index"].notna()]
    if measured.empty:
        raise ValueError("the errors are of no prompt: nothing was measured")
    prompts = measured["prompt_index"].nunique()
    chosen = in_colour(measured)
    drawn = looks_of(list(table["label"].unique()), labels, chosen)
    band = OURS if OURS in drawn else None
    told = table["prompt_index"].isna() & table["value"].notna()
    sentences = [
        f"Lines: medians of {prompts} prompts" + (f"; band: range of {band}." if band else "."),
        "Dotted: predicted from calibration prompts." if told.any() else "",
        f"Marks below: full steps of {band}." if band else "",
        f"Grey: {len(drawn) - len(chosen)} more methods." if len(chosen) < len(drawn) else "",
        NOTE,
    ]
    heading = Heading("Errors at every step", setting, " ".join(filter(None, sentences)))
    figure = page(TWO_COLUMNS, HEIGHT, heading)
    panels = figure.subplots(1, 2, sharex=True)
    for place, (quantity, (title, what)) in enumerate(QUANTITIES.items()):
        axes, values = panels[place], table[table["quantity"] == quantity]
        axes.set_yscale("log")
        ends = {}
        for label, rows in values.groupby("label", sort=False):
            end = _line(axes, rows, drawn[label], band=label == band)
            if end and stands_out(drawn[label]):
                ends[label] = end
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="step", ylabel=what)
        panel_title(axes, place, title)
        last = int(table["step"].max())
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=True).tick_values(0, last)
        axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])
        room = (name_inches(ends) + 0.12) / 3.0 if ends else 0
        axes.set_xlim(-0.5, last + 1 + (last + 1) * room / (1 - room))
        axes.autoscale_view(scalex=False)
        if band:
            _full_steps(axes, table[table["label"] == band])
        label_ends(axes, ends, drawn, (3.0, HEIGHT - 0.8))
    return figure


def in_colour(measured: pd.DataFrame) -> set[str]:
    """Return the methods that stand out: all if they are few, else those that end closest."""
    labels = list(measured["label"].unique())
    if len(labels) <= COLOURED:
        return set(labels)
    latents = measured[measured["quantity"] == "latents"]
    last = latents[latents["step"] == latents["step"].max()].groupby("label")["value"].median()
    return {OURS, *last.sort_values(kind="stable").index[:BEST]} & set(labels)


def _line(axes: Axes, values: pd.DataFrame, look, band: bool) -> tuple[float, float] | None:
    """Draw what was measured of one method, and over it what was predicted; return its end.

    Lines are broken where a step has no value or one of zero, which no logarithmic axis has.
    """
    steps = np.arange(values["step"].max() + 1)
    drawn = values.where(values["value"] > 0)
    of_prompts = drawn[drawn["prompt_index"].notna()].groupby("step")["value"]
    low, middle, high = (getattr(of_prompts, f)().reindex(steps) for f in ("min", "median", "max"))
    line = {**look, "marker": "", "linestyle": "-"}  # dots are for predictions
    if band:
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(steps, middle, **{**line, **marking_lone(middle)})
    told = drawn[drawn["prompt_index"].isna()].dropna(subset="value")
    told = told.set_index("step")["value"].reindex(steps)
    axes.plot(steps, told, **{**line, "linestyle": DOTS, "linewidth": 1.0})
    there = middle.dropna()
    return (float(there.index[-1]), float(there.iloc[-1])) if len(there) else None


def _full_steps(axes: Axes, values: pd.DataFrame) -> None:
    full = np.unique(values.loc[values["full"], "step"])
    axes.vlines(full, 0, 0.04, transform=axes.get_xaxis_transform(), color=INK, linewidth=1)


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table), arguments.labels, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("errors", __doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.errors")
    run(main, parser, outputs=["out"], inputs=["table"])

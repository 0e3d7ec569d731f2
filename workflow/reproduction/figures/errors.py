"""Errors: the error of each method at every step, measured on prompts, and its prediction.

Each method has an upper and a lower panel. The upper one shows, in open loop, the relative error of
the forecasts at skipped steps, made from the features of an uncached full run at the method's tap.
The lower one shows, in closed loop, the root-mean-square difference between the latents after each
step and those of the full run, in units of the initial noise. Lines are medians over prompts, bands
the whole range; ticks at the bottom are the full steps, which add no error of their own. Dashed
lines are predictions from the weights and the calibrated kernel, both in open loop: in the lower
panel the measured line departs from the prediction where the network damps or amplifies errors.
"""

import argparse
from math import ceil

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from reproduction.figures._common import (
    OURS,
    TWO_COLUMNS,
    marking_lone,
    require,
    save,
    style,
    wrapped,
)
from reproduction.tables.tables import read_table

COLUMNS, PANEL = 4, 1.25  # panels side by side, and inches high
QUANTITIES = {
    "forecast": "open loop: error / size of the features",
    "latents": "closed loop: error of the latents",
}
COLUMNS_READ = ["label", "full_steps", "step", "full", "prompt_index", "quantity", "value"]
MEASURED, PREDICTED, DASHES = "#0072B2", "#111111", (0, (2.5, 1.5))


@style()
def draw(table: pd.DataFrame) -> Figure:
    """Return the figure of errors (`reproduction.stages.errors`).

    Raises:
        ValueError: the table is empty or lacks a column, or nothing of it was measured.
    """
    require(table, COLUMNS_READ, "errors' rows")
    if table["prompt_index"].isna().all():
        raise ValueError("the errors are of no prompt: nothing was measured")
    labels = list(table["label"].unique())
    rows, columns = ceil(len(labels) / COLUMNS), min(COLUMNS, len(labels))
    figure = Figure(figsize=(TWO_COLUMNS, 2 * PANEL * rows + 0.75))
    parts = figure.subfigures(2, 1)
    for part, (quantity, what) in zip(parts, QUANTITIES.items(), strict=True):
        part.supylabel(what, size=8)
        panels = _grid(part, rows, columns, len(labels))
        values = table[table["quantity"] == quantity]
        for axes, label in zip(panels, labels, strict=True):
            _panel(axes, values[values["label"] == label])
            _full_steps(axes, table[table["label"] == label])
            axes.set_title(
                wrapped(label, 1.5, 7.5, lines=1), size=7.5, pad=3,
                weight="bold" if label == OURS else "normal",
            )  # fmt: skip
    parts[1].supxlabel("step", size=8)
    _legend(figure, table)
    return figure


def _grid(part: SubFigure, rows: int, columns: int, count: int) -> list[Axes]:
    """Return `count` panels that share their axes; the outer ones have tick labels."""
    panels = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    for i, axes in enumerate(panels[:count]):
        axes.tick_params(labelbottom=i + columns >= count, labelleft=i % columns == 0)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    return list(panels[:count])


def _panel(axes: Axes, values: pd.DataFrame) -> None:
    """Draw one method: what was measured, and over it what was predicted.

    Lines are broken where a step has no value or one of zero, which no logarithmic axis has.
    """
    steps = np.arange(values["step"].max() + 1) if len(values) else []
    drawn = values.where(values["value"] > 0)
    of_prompts = drawn[drawn["prompt_index"].notna()].groupby("step")["value"]
    low, middle, high = (getattr(of_prompts, f)().reindex(steps) for f in ("min", "median", "max"))
    axes.fill_between(steps, low, high, color=MEASURED, alpha=0.3, linewidth=0)
    axes.plot(steps, middle, color=MEASURED, linewidth=1.2, **marking_lone(middle))
    told = drawn[drawn["prompt_index"].isna()].dropna(subset="value")
    told = told.set_index("step")["value"].reindex(steps)
    axes.plot(steps, told, color=PREDICTED, linewidth=0.9, linestyle=DASHES)


def _full_steps(axes: Axes, values: pd.DataFrame) -> None:
    full = np.unique(values.loc[values["full"], "step"])
    place = axes.get_xaxis_transform()
    axes.vlines(full, 0, 0.06, transform=place, color="#555555", linewidth=0.8)


def _legend(figure: Figure, table: pd.DataFrame) -> None:
    prompts = table["prompt_index"].nunique()
    look = {"color": MEASURED, "linewidth": 1.2}
    axes = figure.axes[0]
    handles = [
        *axes.plot([], [], label=f"measured, median of {prompts} prompts", **look),
        axes.fill_between([], [], [], color=MEASURED, alpha=0.3, linewidth=0, label="their range"),
        *axes.plot(
            [], [], color=PREDICTED, linewidth=0.9, linestyle=DASHES,
            label="predicted from calibration prompts",
        ),
        *axes.plot(
            [], [], "|", color="#555555", markersize=5, label="full steps", markeredgewidth=0.8
        ),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def main(arguments: argparse.Namespace) -> None:
    save(draw(read_table(arguments.table)), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("errors", description=__doc__)
    parser.add_argument("--table", required=True, help="CSV of reproduction.stages.errors")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["table"])

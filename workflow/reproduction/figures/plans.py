"""Plans: with which weights each method bridges each gap between full steps, one panel per method.

A row is a gap: the skipped steps between two full steps. Column 1 is the feature of the latest full
step, column 2 of the one before, and so on; the last column adds up all older ones, if there are
more than fit. A cell is the mean of the weights at the gap's steps, each weighted by the timesteps
that its step covers: for an Euler sampler that is what the latents receive over the gap. A row with
a single 1 repeats a feature; positive next to negative extrapolates. Plans with a matrix for each
stream are shown as the mean of their streams.
"""

import argparse
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure

from eigencache.kernel import step_sizes
from eigencache.plan import Plan
from reproduction.figures._common import (
    INK,
    NAME_PT,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    page,
    panel_title,
    save,
    style,
    wrapped,
)

COLUMNS = 4  # panels side by side
REACH = 6  # full steps back that have a column of their own
ROBUST = 0.95  # the share of cells inside the colour limits
CELL, PANEL = 0.165, 0.62  # inches high: a gap, and what a panel needs besides
NUMBERS = 26  # of more gaps than these the cells are too small for numbers
NOTE = (
    "Rows: the gap from one full step to the next, by the numbers of its skipped steps. Columns: "
    "the features that its forecasts draw on; 1 is the latest full step, 2 the one before, and "
    "so on. Cells: the mean weight over the gap's steps, each counted by the timesteps that it "
    "covers. A lone 1 repeats a feature; positive beside negative extrapolates."
)
AIMED = ("EigenCache-design", "EigenCache")  # methods of plans to which this applies
AIMED_NOTE = (
    "Gaps of EigenCache's plans also make up for the errors of those before, which takes large "
    "weights where a gap is short."
)


@style()
def draw(plans: Mapping[str, Plan], setting: str = "") -> Figure:
    """Return the figure of plans by label.

    Raises:
        ValueError: there is no plan, or they differ in their number of steps.
    """
    if not plans:
        raise ValueError("no plans: nothing to draw")
    if len({len(plan) for plan in plans.values()}) > 1:
        raise ValueError(
            f"the plans differ in their steps: { {k: len(p) for k, p in plans.items()} }"
        )
    shown = {label: by_gap(plan) for label, plan in plans.items()}
    rows = ceil(len(plans) / COLUMNS)
    columns = ceil(len(plans) / rows)
    gaps = max(1, *(len(names) for names, _ in shown.values()))
    streams = {label: len(plan.streams) for label, plan in plans.items() if plan.streams}
    means = ", ".join(f"{label} ({count} streams)" for label, count in streams.items())
    sentences = [
        NOTE,
        AIMED_NOTE if any(plan.method in AIMED for plan in plans.values()) else "",
        f"Means over streams: {means}." if streams else "",
    ]
    note = " ".join(filter(None, sentences))
    heading = Heading("How each method bridges the gaps between full steps", setting, note)
    counts = [len(names) for names, _ in shown.values()]
    of_rows = [max(1, *counts[k : k + columns]) for k in range(0, len(counts), columns)]
    heights = [PANEL + min(CELL * count, 5.5) for count in of_rows]
    figure = page(TWO_COLUMNS, sum(heights) + 0.2, heading)
    norm = CenteredNorm(0, limit([cells for _, cells in shown.values()]))
    panels = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for place, (axes, (label, (names, cells))) in enumerate(
        zip(panels, shown.items(), strict=False)
    ):
        _panel(axes, names, cells, norm, of_rows[place // columns], 6 if columns < COLUMNS else 5)
        if place % columns == 0:
            axes.set_ylabel("skipped steps", size=NAME_PT)
        text = wrapped(label, TWO_COLUMNS / columns - 0.45, NAME_PT, lines=1)
        panel_title(axes, place, text, size=NAME_PT, weight="bold" if label == OURS else "normal")
    for axes in panels[len(plans) :]:
        axes.remove()
    if gaps > NUMBERS:
        _colour_bar(figure, list(panels[: len(plans)]), [cells for _, cells in shown.values()])
    return figure


def by_gap(plan: Plan) -> tuple[list[str], np.ndarray]:
    """Return the gaps of a plan, by their steps, and the weights with which each is bridged.

    Returns:
        names such as "6-11", and float64 `[gaps, columns]`, the columns from the latest full step
        back: nan where there is no such full step.
    """
    weights, full = mean_weights(plan), np.array(plan.full_steps)
    sizes = np.abs(step_sizes(plan.timesteps))
    sizes = sizes if sizes.any() else np.ones(len(plan))
    names, rows = [], []
    for first, after in zip(full + 1, [*full[1:], len(plan)], strict=True):
        if first == after:
            continue
        counted = sizes[first:after] if sizes[first:after].any() else np.ones(after - first)
        back = np.average(weights[first:after], axis=0, weights=counted)[full[full < first]][::-1]
        if len(back) > REACH:
            back = np.append(back[: REACH - 1], back[REACH - 1 :].sum())
        names.append(f"{first}\N{EN DASH}{after - 1}" if after - first > 1 else f"{first}")
        rows.append(np.pad(back, (0, REACH - len(back)), constant_values=np.nan))
    cells = np.array(rows).reshape(-1, REACH)
    used = np.flatnonzero((np.nan_to_num(cells) != 0).any(axis=0))
    return names, cells[:, : used[-1] + 1 if len(used) else 1]


def mean_weights(plan: Plan) -> np.ndarray:
    """Return float64 `[T, T]`: the weights of a plan, or their mean over its streams.

    A stream that is computed at a step has no weights there, and does not count.
    """
    if plan.weights.ndim == 2:
        return plan.weights
    forecast = (plan.weights != 0).any(-1).sum(0)
    return plan.weights.sum(0) / np.maximum(forecast, 1)[:, None]


def limit(cells: list[np.ndarray]) -> float:
    """Return where colours end, plus and minus: the numbers of a few cells may be larger."""
    sizes = np.abs(np.concatenate([one[np.isfinite(one)] for one in cells]))
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return 1.0
    robust = float(np.quantile(sizes, ROBUST))
    return robust if sizes.max() > 1.5 * robust else float(sizes.max())


def _panel(
    axes: Axes, names: list[str], cells: np.ndarray, norm: Normalize, gaps: int, size: float
) -> None:
    """Draw the gaps of one plan with numbers of a size in points, and room for `gaps` of them."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if names:
        axes.imshow(cells, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    axes.set(xlim=(-0.5, REACH - 0.5), ylim=(gaps - 0.5, -0.5))
    axes.tick_params(length=0, labelsize=6, pad=2)
    axes.xaxis.set_ticks_position("top")
    older = [*range(1, REACH), f"{REACH}+"][: cells.shape[1]]
    axes.set_xticks(range(cells.shape[1]), [str(k) for k in older])
    every = ceil(max(len(names), 1) / NUMBERS)
    axes.set_yticks(range(0, len(names), every), names[::every])
    for place, value in np.ndenumerate(cells) if every == 1 else ():
        if np.isfinite(value) and value != 0:
            dark = abs(norm(value) - 0.5) > 0.33
            text = f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
            text = text.replace("-0.0", "0.0")
            axes.text(
                place[1], place[0], text.replace("-", "\N{MINUS SIGN}"), ha="center",
                va="center_baseline", size=size, color="white" if dark else INK,
            )  # fmt: skip


def _colour_bar(figure: Figure, panels: list[Axes], cells: list[np.ndarray]) -> None:
    image = next(image for axes in panels for image in axes.images)
    values = np.concatenate([one[np.isfinite(one)] for one in cells])
    below, above = values.min(initial=0) < image.norm.vmin, values.max(initial=0) > image.norm.vmax
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = figure.colorbar(image, ax=panels, extend=extend, aspect=30, pad=0.01, shrink=0.8)
    bar.set_label("weight", size=7)
    bar.ax.tick_params(labelsize=6)
    bar.outline.set_visible(False)


def main(arguments: argparse.Namespace) -> None:
    plans = {Path(path).parent.name: Plan.load(path) for path in arguments.plans}
    if len(plans) < len(arguments.plans):
        raise ValueError("two plans are in folders of the same name: name each method once")
    save(draw(plans, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("plans", __doc__)
    parser.add_argument("--plans", nargs="+", required=True, help="files LABEL/BUDGET.safetensors")
    run(main, parser, outputs=["out"], inputs=["plans"])

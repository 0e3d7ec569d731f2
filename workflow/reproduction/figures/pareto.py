"""Pareto: the PSNR of each method against its measured speed-up, and the speed-up at equal PSNR.

Panel a has one line per method and one point per budget of full steps; the shape of a point is its
budget. A point's PSNR is the mean over images, with its 95 % bootstrap interval over prompts, and
its speed-up the median over images timed beside a full run. Panel b cuts all lines at one PSNR. If
there are many methods, ours, the baseline and those that lag least behind the best, or are named,
are in colour; the rest are grey.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from eigencache.plan import FEWER_STEPS, FULL
from reproduction.figures._common import (
    BUDGET_MARKERS,
    FAINT,
    NAME_PT,
    OURS,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    label_ends,
    looks_of,
    name_inches,
    note_left_out,
    of_first_reference,
    page,
    panel_title,
    require,
    save,
    stands_out,
    style,
    wrapped,
)
from reproduction.tables.tables import read_table

COLOURED, BEST = 9, 5  # methods that can all be in colour, and of more, how many of the best are
HEIGHT, LINE = 2.9, 0.125  # inches: of the panels at least, and of a name in panel b
SLOW = 0.05  # of a full step: a skipped step that takes longer is worth a sentence
# Ticks of speed-up and of numbers of steps; those that are in view.
SPEEDUPS = (1, 1.2, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 80, 120)
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000)


class Cost(NamedTuple):
    """What the horizontal axes of a figure of quality show."""

    column: str
    title: str
    panel: str
    needed: str
    unit: str


SPEEDUP = Cost("speedup", "Image quality against measured speed-up", "Quality at equal speed",
               "Speed-up", "×")  # fmt: skip  # noqa: RUF001
STEPS = Cost("full_steps", "Image quality against full steps", "Quality at equal compute",
             "Full steps", "")  # fmt: skip


@style()
def draw(
    summary: pd.DataFrame, highlight: Collection[str] = (), cost: Cost = SPEEDUP,
    labels: Sequence[str] = (), setting: str = "", inner: Collection[str] = (),
) -> Figure:  # fmt: skip
    """Return the figure of a summary (`reproduction.stages.table`), of its first reference.

    Args:
        summary: one row per run and reference.
        highlight: if there are many methods, those in colour besides ours and the baseline; if
            empty, the best are chosen.
        cost: what the horizontal axes show, `SPEEDUP` or `STEPS`.
        labels: all methods of the experiment, in the order that fixes their looks.
        setting: for the heading.
        inner: the methods that forecast features inside the network.

    Raises:
        ValueError: the table is empty or lacks a column, the full run or any other; a value to
            draw is missing; or a method to highlight is unknown.
    """
    rows, full = runs_of(summary, ["psnr"])
    drawn = looks_of(rows["method"], labels, in_colour(rows, highlight))
    steps = int(full["num_steps"])
    more = slow_note(rows, inner) if cost is SPEEDUP else _predicted_note(rows)
    target = equal_quality(rows, cost.column)
    sentences = [points_note(rows, drawn), bounds_note(rows, cost.column, target), more]
    note = " ".join(filter(None, sentences))
    height = max(HEIGHT, 0.75 + LINE * len(drawn))
    figure = page(TWO_COLUMNS, height, Heading(cost.title, setting, note))
    several = {"ncols": 2, "width_ratios": (1.75, 1)} if target else {}
    left, *others = figure.subplots(squeeze=False, **several).ravel()
    _lines(left, rows, cost, drawn, steps, (3.4 if target else 5.8, height - 0.75))
    if others:
        panel_title(left, 0, cost.panel)
    for right in others:
        _at_equal_quality(right, rows, cost, drawn, target, steps)
        panel_title(right, 1, f"{cost.needed} at {target:g} dB")
    return figure


def runs_of(
    summary: pd.DataFrame, metrics: Sequence[str], more: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.Series]:
    """Return the runs that are compared with a summary's first reference, and its full run.

    Raises:
        ValueError: the table is empty, or lacks a column, the full run, any other or a value
            of the metrics.
    """
    rows, reference = of_first_reference(summary)
    columns = ["run", "method", "num_steps", "full_steps", "baseline"]
    ends = [f"{name}_{end}" for name in ("psnr", "speedup") for end in ("low", "high")]
    require(rows, [*columns, "psnr", *metrics, "speedup", *ends, *more], "summary's rows")
    full = rows[rows["run"] == FULL]
    rows = rows[~rows["run"].isin([FULL, reference])]
    if full.empty or rows.empty:
        raise ValueError(f"the summary needs the run {FULL!r} and at least one other")
    for column in ("speedup", *metrics):
        gaps = rows.loc[rows[column].isna(), "run"]
        if len(gaps):
            raise ValueError(f"the summary has no {column} of runs {sorted(gaps)}")
    return rows, full.iloc[0]


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


# ---- Equal quality


def needed(points: pd.DataFrame, cost: str, target: float) -> tuple[float, str]:
    """Return the cost at which one method reaches a PSNR, and how the number is to be read.

    The line between two budgets is straight in the PSNR over the logarithm of the cost.

    Returns:
        the cost and "=", or, where the PSNR lies outside of what was measured, the cost of the
        smallest budget and "above" (the method is better even there), or of the largest and
        "below" (it never gets there).
    """
    points = points.sort_values("full_steps")
    psnr = np.minimum(points["psnr"].to_numpy(float), np.finfo(float).max)
    log = np.log(points[cost].to_numpy(float))
    reached = psnr >= target
    if reached[0]:
        return float(np.exp(log[0])), "above"
    if not reached.any():
        return float(np.exp(log[-1])), "below"
    k = int(reached.argmax())
    share = (target - psnr[k - 1]) / (psnr[k] - psnr[k - 1])
    return float(np.exp(log[k - 1] + share * (log[k] - log[k - 1]))), "="


def equal_quality(rows: pd.DataFrame, cost: str) -> int | None:
    """Return the highest whole number of decibels that more than half of the methods reach.

    None: there is none between the budgets of any method, so that nothing could be interpolated.
    """
    finite = rows.loc[np.isfinite(rows["psnr"]), "psnr"]
    if finite.empty or rows["method"].nunique() < 2:
        return None
    for target in range(int(finite.max()), int(np.ceil(finite.min())) - 1, -1):
        found = [needed(points, cost, target)[1] for _, points in rows.groupby("method")]
        if "=" in found and found.count("below") < len(found) / 2:
            return target
    return None


def _at_equal_quality(
    axes: Axes, rows: pd.DataFrame, cost: Cost, drawn: Mapping[str, Mapping[str, Any]],
    target: int, num_steps: int,
) -> None:  # fmt: skip
    """Draw what each method costs at one PSNR, the cheapest on top."""
    found = {
        method: needed(points, cost.column, target)
        for method, points in rows.groupby("method", sort=False)
    }
    # Beyond what was measured the order follows the bound; "above" is better than any equal number.
    worth = {"above": 1, "=": 0, "below": -1}
    sign = 1 if cost is SPEEDUP else -1
    order = sorted(found, key=lambda k: (worth[found[k][1]] == -1, -sign * found[k][0]))
    axes.set_xscale("log")
    for place, method in enumerate(order):
        value, how = found[method]
        look = drawn[method]
        colour = look["color"] if stands_out(look) else FAINT
        better = (how == "above") == (cost is SPEEDUP)
        marker = "o" if how == "=" else (">" if better else "<")
        face = colour if how == "=" else "white"
        axes.plot(value, place, marker, color=colour, markerfacecolor=face, markersize=5.5,
                  markeredgewidth=1.1, clip_on=False, zorder=3)  # fmt: skip
        text = f"{value:.1f}" if how == "=" else f"{'≥' if better else '≤'} {value:.1f}"
        text = (text if cost is SPEEDUP or how == "=" else text.removesuffix(".0")) + cost.unit
        axes.annotate(text, (value, place), (6, 0), textcoords="offset points", va="center",
                      size=NAME_PT, color=colour, annotation_clip=False)  # fmt: skip
    names = [wrapped(name, 1.1, NAME_PT, lines=1) for name in order]
    axes.set_yticks(range(len(order)), names, parse_math=False)
    for tick, method in zip(axes.get_yticklabels(), order, strict=True):
        tick.set(color=drawn[method]["color"] if stands_out(drawn[method]) else FAINT,
                 weight="bold" if method == OURS else "normal")  # fmt: skip
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    low, high = min(v for v, _ in found.values()), max(v for v, _ in found.values())
    axes.set_xlim(low / 1.12, high * (high / low) ** 0.35 * 1.2)
    _cost_axis(axes, [value for value, _ in found.values()], cost, num_steps)


# ---- Quality at equal cost


def _lines(
    axes: Axes, rows: pd.DataFrame, cost: Cost, drawn: Mapping[str, Mapping[str, Any]],
    num_steps: int, size: tuple[float, float],
) -> None:  # fmt: skip
    """Draw one line per method, named at its end; say how many points do not fit on the axes."""
    shown = rows[np.isfinite(rows["psnr"])]
    ends = {}
    markers = budget_markers(rows)
    axes.set_xscale("log")
    for method, points in shown.groupby("method", sort=False):
        points = points.sort_values(cost.column)
        look, x = drawn[method], points[cost.column]
        axes.plot(x, points["psnr"], label=method, **{**look, "marker": ""})
        if stands_out(look):
            axes.vlines(x, points["psnr_low"], points["psnr_high"], color=look["color"],
                        linewidth=0.8, alpha=0.5, zorder=look["zorder"] - 0.1)  # fmt: skip
        for row in points.itertuples():
            axes.plot(getattr(row, cost.column), row.psnr, **{
                **look, "marker": markers.get(row.full_steps, "o"), "linestyle": "",
                "label": "_", "markersize": look.get("markersize", 4) + 0.5,
            })  # fmt: skip
        if cost is STEPS and "predicted_psnr" in points:
            axes.plot(x, points["predicted_psnr"], "_", color=look["color"], markersize=11,
                      markeredgewidth=0.8, label="_predicted", zorder=look["zorder"])  # fmt: skip
        ends[method] = (x.iloc[-1], points["psnr"].iloc[-1])
    note_left_out(axes, len(rows) - len(shown))
    axes.set_ylabel("PSNR to the full run (dB)")
    axes.margins(y=0.06)
    # Room for the names, in the logarithm of the cost.
    low, high = rows[cost.column].min(), rows[cost.column].max()
    named = [label for label in ends if stands_out(drawn[label])]
    room = (name_inches(named) + 0.12) / size[0] if named else 0
    spread = np.log(high / low) or 1.0
    axes.set_xlim(low / np.exp(0.04 * spread), high * np.exp(spread * 1.04 * room / (1 - room)))
    _cost_axis(axes, rows[cost.column], cost, num_steps)
    axes.autoscale_view(scalex=False)
    label_ends(axes, {label: ends[label] for label in named}, drawn, size)


def budget_markers(rows: pd.DataFrame) -> dict[int, str]:
    """Return the marker of each budget; none if there are more budgets than markers."""
    budgets = sorted({int(steps) for steps in rows["full_steps"]})
    if len(budgets) > len(BUDGET_MARKERS):
        return {}
    return dict(zip(budgets, BUDGET_MARKERS, strict=False))


SIGNS = dict(zip(BUDGET_MARKERS, "●■▲◆▼✚✖⬟", strict=True))


def points_note(rows: pd.DataFrame, drawn: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the shapes of points and their bars mean, and which methods are grey."""
    shapes = [f"{SIGNS[marker]} {budget}" for budget, marker in budget_markers(rows).items()]
    sentences = [f"Full steps: {', '.join(shapes)}."] if len(shapes) > 1 else []
    if np.isfinite(rows["psnr_low"]).any():
        sentences.append("Bars: 95 % bootstrap intervals over prompts.")
    grey = sum(not stands_out(look) for look in drawn.values())
    if grey:
        sentences.append(f"Grey: {grey} more methods.")
    return " ".join(sentences)


def bounds_note(rows: pd.DataFrame, cost: str, target: int | None) -> str:
    """Return where panel b compares, and what its open triangles mean, if there are any."""
    if target is None:
        return ""
    found = {needed(points, cost, target)[1] for _, points in rows.groupby("method")}
    words = {
        "above": "above that PSNR even at the smallest budget",
        "below": "below that PSNR even at the largest",
    }
    said = [text for how, text in words.items() if how in found]
    told = f"Open triangles: {', or '.join(said)}." if said else ""
    return (
        "Panel b compares at the highest whole PSNR that more than half of the methods reach, "
        f"interpolated between budgets. {told}"
    ).strip()


def _predicted_note(rows: pd.DataFrame) -> str:
    if "predicted_psnr" not in rows or rows["predicted_psnr"].isna().all():
        return ""
    return "Dashes: what the plan predicted, from calibration prompts alone."


def slow_note(rows: pd.DataFrame, inner: Collection[str]) -> str:
    """Return why methods inside the network are slow, or nothing if they are not."""
    there = rows[rows["method"].isin(inner) & (rows["full_steps"] < rows["num_steps"])]
    if there.empty:
        return ""
    steps = there["num_steps"]
    share = (steps / there["speedup"] - there["full_steps"]) / (steps - there["full_steps"])
    middle = share.groupby(there["method"], sort=False).median()
    slow = [method for method in middle.index if middle[method] > SLOW]
    if not slow:
        return ""
    ends = sorted({f"{100 * middle[slow].min():.0f}", f"{100 * middle[slow].max():.0f}"}, key=int)
    return (
        f"{', '.join(slow)}: these forecast features inside the network, so a skipped step still "
        f"runs what lies between them. Here that takes {' to '.join(ends)} % of a full step: "
        "compare them at equal full steps too."
    )


def _cost_axis(axes: Axes, values: Collection[float], cost: Cost, num_steps: int) -> None:
    """Label a cost axis, which is logarithmic, since a budget is a share of all steps."""
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_xlim()
    if cost is STEPS:
        budgets = values if all(float(v).is_integer() for v in values) else COUNTS
        axes.set_xticks(spread([k for k in budgets if low <= k <= high], 1.12))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"full steps, of {num_steps}")
        return
    inside = [tick for tick in SPEEDUPS if low <= tick <= high]
    ticks = spread(inside, (high / low) ** (1 / 7))
    axes.xaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 2 else MaxNLocator(3))
    axes.xaxis.set_major_formatter("{x:g}×")  # noqa: RUF001
    axes.set_xlabel("speed-up, measured")


def spread(values: Collection[float], ratio: float) -> list[float]:
    """Return those of some numbers, ascending, that lie apart by a ratio, to be ticks."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value >= ratio * kept[-1]:
            kept.append(value)
    return kept


def command(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the command line of a figure of a summary."""
    parser = figure_parser(name, description)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--highlight", nargs="*", default=[], help="methods to be in colour")
    parser.add_argument("--inner", nargs="*", default=[], help="methods that cache inside")
    return parser


def main(arguments: argparse.Namespace, cost: Cost = SPEEDUP) -> None:
    summary = read_table(arguments.summary)
    figure = draw(
        summary, arguments.highlight, cost, arguments.labels, arguments.setting, arguments.inner
    )
    save(figure, arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    run(main, command("pareto", __doc__), outputs=["out"], inputs=["summary"])

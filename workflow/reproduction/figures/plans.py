"""Plans: the weights with which each method forecasts its skipped steps, one heat map per method.

Row `s` is the forecast of step `s`; column `a` is the weight of the feature that step `a` computed.
Black squares on the diagonal are the full steps. Blue adds, red with a white dot subtracts: a row
with one dark cell repeats a feature, dark blue next to red extrapolates; the stronger both are, the
more an error in the features is amplified. All panels share one colour scale. It is clipped if a
few weights are far larger than the rest; the colour bar's pointed ends and its label say so.
"""

import argparse
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from eigencache.plan import Plan
from reproduction.figures._common import ONE_COLUMN, OURS, TWO_COLUMNS, save, style, wrapped

COLUMNS = 4
ROBUST = 0.9  # the share of non-zero weights inside the colour limits


@style()
def draw(plans: Mapping[str, Plan]) -> Figure:
    """Return the figure of plans by label. Those with several matrices are shown as their mean.

    Raises:
        ValueError: there is no plan, or they differ in their number of steps.
    """
    if not plans:
        raise ValueError("no plans: nothing to draw")
    if len({len(plan) for plan in plans.values()}) > 1:
        raise ValueError(
            f"the plans differ in their steps: { {k: len(p) for k, p in plans.items()} }"
        )
    shown = {label: mean_weights(plan) for label, plan in plans.items()}
    limit, largest = limits(np.stack(list(shown.values())))
    figure, panels = _grid(len(plans))
    for axes, (label, weights) in zip(panels, shown.items(), strict=True):
        image = _panel(axes, weights, limit)
        axes.plot(*2 * (plans[label].full_steps,), "s", color="black", markersize=1.8, mew=0)
        _title(axes, label, len(plans[label].streams))
    figure.supxlabel("step whose feature is used (■ on the diagonal: full steps)", size=8)
    figure.supylabel("step being forecast", size=8)
    rows = ceil(len(plans) / COLUMNS)
    _colour_bar(figure, image, list(shown.values()), limit, largest, aspect=15 * max(rows, 2))
    return figure


def mean_weights(plan: Plan) -> np.ndarray:
    """Return float64 `[T, T]`: the weights of a plan, or their mean over its streams.

    A stream that is computed at a step has no weights there, and does not count.
    """
    if plan.weights.ndim == 2:
        return plan.weights
    forecast = (plan.weights != 0).any(-1).sum(0)
    return plan.weights.sum(0) / np.maximum(forecast, 1)[:, None]


def limits(weights: np.ndarray) -> tuple[float, float]:
    """Return where colours are clipped, plus and minus, and the weight of largest size.

    Nothing is clipped unless a few weights are more than half as large again as nearly all others.
    """
    used = weights[weights != 0]
    if not used.size:
        return 1.0, 0.0
    sizes = np.abs(used)
    largest = float(used[sizes.argmax()])
    # Two digits, so that the label of the colour bar states the limit exactly.
    robust = float(f"{np.quantile(sizes, ROBUST):.2g}")
    return (robust if abs(largest) > 1.5 * robust else abs(largest)), largest


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure and `count` panels in rows; the outer ones have tick labels."""
    columns = min(COLUMNS, count)
    rows = ceil(count / columns)
    width = max(ONE_COLUMN, 1.2 + columns * (TWO_COLUMNS - 1.2) / COLUMNS)
    figure = Figure(figsize=(width, 0.45 + 1.65 * rows), layout="compressed")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    for i, axes in enumerate(panels[:count]):
        axes.tick_params(labelbottom=i + columns >= count, labelleft=i % columns == 0)
    return figure, list(panels[:count])


def _panel(axes: Axes, weights: np.ndarray, limit: float) -> AxesImage:
    """Draw one heat map and return its image."""
    axes.grid(False)
    axes.spines[:].set_visible(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    below, of = np.nonzero(weights < 0)
    axes.plot(of, below, "s", color="white", markersize=0.8, mew=0)  # to be told apart in grey
    return axes.imshow(weights, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")


def _title(axes: Axes, label: str, streams: int) -> None:
    title = wrapped(label, 1.4, 7.5)
    if streams:
        title += f"\n(mean of {streams} streams)"
    axes.set_title(title, size=7.5, weight="bold" if label == OURS else "normal", pad=3)


def _colour_bar(
    figure: Figure, image: AxesImage, shown, limit: float, largest: float, aspect: float
) -> None:
    below = min(weights.min() for weights in shown) < -limit
    above = max(weights.max() for weights in shown) > limit
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = figure.colorbar(image, ax=figure.axes, extend=extend, aspect=aspect, pad=0.02)
    label = "weight"
    if extend != "neither":
        label += f", clipped at ±{limit:g}\n(most extreme: {largest:.3g})"
    bar.set_label(label.replace("-", "\N{MINUS SIGN}"))
    bar.outline.set_linewidth(0.5)


def main(arguments: argparse.Namespace) -> None:
    plans = {Path(path).parent.name: Plan.load(path) for path in arguments.plans}
    if len(plans) < len(arguments.plans):
        raise ValueError("two plans are in folders of the same name: name each method once")
    save(draw(plans), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("plans", description=__doc__)
    parser.add_argument("--plans", nargs="+", required=True, help="files LABEL/BUDGET.safetensors")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["plans"])

"""Trajectory: how features move along the sampler's steps, and how well simple forecasts follow.

Above, one panel a stream (of many, a dozen evenly spread over the network): its features, all
numbers of a step together, projected on the two directions in which they vary most over the run, in
their true proportions. The line goes from the first step (ring) to the last (square), and the
percentages are the shares of the variance that the two directions hold. A smooth, plain curve can
be forecast from a few of its points. Where a plan is given, crosses are what its weights make of
each step that they forecast, from the true features, in the same two directions; a short line joins
each to the truth, and dots are the full steps.

Below, what a forecast of each step errs by, as a share of the feature's size: if the feature of the
step before is used again, if the last two are drawn on in a straight line over the noise level, and
by the plan, which draws on full steps alone; one line a stream, the darker the earlier in the
network. Of streams of image and text, the image's part is drawn.
"""

import argparse
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eigencache.design import residuals
from eigencache.plan import Plan, PlanError
from reproduction.figures._common import (
    INK,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    letter,
    marking_lone,
    page,
    save,
    style,
    wrapped,
)
from reproduction.trajectory import Trajectory

COLUMNS, PANEL, ERRORS = 4, 1.6, 2.3  # inches high: a panel with its title, and the lower part
ALONE = 3.0  # inches high: the panel of an only stream
PANELS = 12  # of more streams, so many are drawn above, evenly spread
NOTE = (
    "Above: features in the two directions in which they vary most, and the shares of the "
    "variance that these hold; the ring is the first step, the square the last. Below: what "
    "forecasts of each step miss, over the size of the feature; a line is a stream, the darker the "
    "earlier in the network. The straight line goes through the two steps before."
)
NAME = 28  # characters of a name that fit above a panel
FORECAST = "#B3001B"


@style()
def draw(
    features: Mapping[str, np.ndarray], sigmas: np.ndarray,
    missed: Mapping[str, np.ndarray] | None = None, name: str = "the plan", setting: str = "",
) -> Figure:  # fmt: skip
    """Return the figure of features by stream, float `[T, ...]`, and noise levels, `[T + 1]`.

    Args:
        features: of a trajectory.
        sigmas: of it.
        missed: from `errors_of`: what a plan's forecasts miss, as weights of the features; by
            default no plan is drawn.
        name: of the plan.
        setting: for the heading.

    Raises:
        ValueError: there is nothing to draw, or there are fewer than three steps.
    """
    shown = {
        stream.removesuffix(".image"): np.asarray(feature, np.float64).reshape(len(feature), -1)
        for stream, feature in features.items()
        if not stream.endswith(".text")
    }
    if not shown or len(sigmas) < 4:
        raise ValueError("a trajectory of three steps and one stream at least can be drawn")
    missed = missed or {}
    places = np.linspace(0, len(shown) - 1, min(len(shown), PANELS)).round().astype(int)
    streams = [list(shown)[place] for place in places]
    columns = min(len(streams), COLUMNS)
    rows = ceil(len(streams) / columns)
    height = rows * (PANEL if len(streams) > 1 else ALONE)
    heading = Heading("How features move along one full run", setting, NOTE)
    figure = page(TWO_COLUMNS, height + ERRORS, heading)
    above, below = figure.subfigures(2, height_ratios=(height, ERRORS))
    panels = above.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, stream) in enumerate(zip(panels, streams, strict=False)):
        coordinates, shares = principal(shown[stream])
        line = _path(axes, coordinates, dots=stream not in missed)
        if stream in missed:
            _forecasts(axes, coordinates, missed[stream], off_centre(shown[stream]))
        _describe(axes, stream, shares, f"{letter(place)}  ")
    for axes in panels[len(streams) :]:
        axes.remove()
    bar = above.colorbar(line, ax=list(panels[: len(streams)]), aspect=12 * rows, pad=0.02)
    bar.set_label("step")
    bar.locator = MaxNLocator(5, integer=True)
    bar.outline.set_linewidth(0.5)
    if missed:
        computed = int((~missed[streams[0]].any(axis=1)).sum())
        handles = _marks(panels[0], computed)
        above.legend(handles=handles, loc="outside lower center", ncols=2)
    panels = below.subplots(1, 3 if missed else 2, sharex=True, sharey=True)
    _errors(panels, shown, sigmas, missed, name, len(streams))
    return figure


def errors_of(plan: Plan, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Return what a plan's forecasts of each stream miss, as weights of its features, `[T, T]`.

    Rows of steps that compute the stream are zero. Streams are named as `draw` shows them.

    Raises:
        PlanError: plan and trajectory are of other timesteps, models or taps. A plan of another
            tap is taken if its weights depend on no calibration and are the same for all streams.
    """
    plan.check_timesteps(trajectory.timesteps)
    if plan.tap != trajectory.tap and (plan.streams or plan.model is not None):
        raise PlanError(
            f"the plan is of features at tap {plan.tap!r}, the trajectory at {trajectory.tap!r}, "
            "and its weights were calibrated: collect the plan's tap, or choose a plan whose "
            "weights are a formula"
        )
    if plan.model not in (None, trajectory.model):
        raise PlanError(f"the plan is of model {plan.model}, the trajectory of {trajectory.model}")
    names = [name for name in trajectory.features if not name.endswith(".text")]
    names = [name.removesuffix(".image") for name in names]
    return {name: residuals(plan, name) for name in names}


def principal(feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two leading principal components of a feature, float64 `[T, D]`.

    Returns:
        The coordinates, float64 `[T, 2]`, with the first step on the lower left, and the share of
        the variance that each holds, `[2]`; of a feature that never changes, zeros.
    """
    centred = feature - feature.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    coordinates = vectors[:, :2] * np.sqrt(values[:2])
    coordinates *= np.where(coordinates[0] > 0, -1, 1)
    return coordinates, values[:2] / (values.sum() or 1.0)


def off_centre(feature: np.ndarray) -> np.ndarray:
    """Return where zero lies in `principal`'s coordinates of a feature, `[T, D]`: float64 `[2]`.

    With it, coordinates of weighted sums of the feature's steps are known: those of a sum with
    weights w are `w @ coordinates + (1 - w.sum()) * off_centre`.
    """
    coordinates, _ = principal(feature)
    mean = feature.mean(0)
    along = coordinates.T @ ((feature - mean) @ -mean)
    squares = np.square(coordinates).sum(0)
    return np.divide(along, squares, out=np.zeros(2), where=squares > 0)


def forecast_errors(feature: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much two forecasts of a feature, float64 `[T, D]`, err, over its size.

    Returns:
        Float64 `[T - 1]`, the errors at steps 1, 2 ... of using the step before again; and
        `[T - 2]`, those at steps 2, 3 ... of a straight line over sigma through the last two.
    """
    size = np.linalg.norm(feature, axis=1)
    size = np.where(size > 0, size, 1.0)
    change, moved = np.diff(feature, axis=0), np.diff(sigmas[: len(feature)])
    bent = change[1:] - change[:-1] * (moved[1:] / moved[:-1])[:, None]
    return np.linalg.norm(change, axis=1) / size[1:], np.linalg.norm(bent, axis=1) / size[2:]


def _path(axes: Axes, coordinates: np.ndarray, dots: bool = True) -> LineCollection:
    """Draw a path that is coloured by step, with a dot a step, and return its line."""
    points = coordinates[:, None]
    line = LineCollection(np.concatenate([points[:-1], points[1:]], 1), linewidth=1.2)
    line.set_array(np.arange(len(coordinates) - 1))
    line.set_clim(0, len(coordinates) - 1)
    axes.add_collection(line)
    if dots:
        colours = mpl.colormaps[mpl.rcParams["image.cmap"]](np.linspace(0, 1, len(coordinates)))
        axes.scatter(*coordinates.T, s=4, c=colours, linewidths=0, zorder=3)
    axes.plot(*coordinates[0], "o", color=INK, markerfacecolor="none", markersize=6)
    axes.plot(*coordinates[-1], "s", color=INK, markerfacecolor="none", markersize=5.5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    return line


def _forecasts(axes: Axes, true: np.ndarray, missed: np.ndarray, zero: np.ndarray) -> None:
    """Draw the forecasts of a plan, each joined to the truth, and dots at the other steps."""
    at = np.flatnonzero(missed.any(axis=1))
    made = true[at] + missed[at] @ true - missed[at].sum(1, keepdims=True) * zero
    axes.add_collection(
        LineCollection(np.stack([true[at], made], 1), color=FORECAST, linewidth=0.5, zorder=3)
    )
    axes.plot(*made.T, "x", color=FORECAST, markersize=2.2, markeredgewidth=0.5, zorder=3.5)
    computed = np.delete(true, at, axis=0)
    axes.plot(*computed.T, "o", color=INK, markersize=2.2, markeredgewidth=0, zorder=4)


def _marks(axes: Axes, computed: int) -> list:
    """Return what the legend of forecasts explains, of so many computed steps."""
    dot = {"color": "black", "markersize": 2.2, "markeredgewidth": 0}
    cross = {"color": FORECAST, "markersize": 3.5, "markeredgewidth": 0.6, "linewidth": 0.5}
    return [
        *axes.plot([], [], "o", label=f"{computed} full steps", **dot),
        *axes.plot([], [], "-x", label="forecasts, joined to the truth", **cross),
    ]


def _describe(axes: Axes, name: str, shares: np.ndarray, before: str) -> None:
    if len(name) > NAME:
        name = "\n.".join(name.rsplit(".", 1))
    axes.set_title(before + name, size=7, pad=3)
    axes.set_xlabel(" + ".join(f"{100 * share:.0f} %" for share in shares), size=6.5, labelpad=2)


def _errors(
    panels, shown: Mapping[str, np.ndarray], sigmas: np.ndarray,
    missed: Mapping[str, np.ndarray], name: str, before: int,
) -> None:  # fmt: skip
    """Draw the errors of all forecasts; the first stream and the last are named.

    The letters of the panels follow those of `before` others.
    """
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(shown)))
    for depth, ((stream, feature), colour) in enumerate(zip(shown.items(), colours, strict=True)):
        label = stream if depth in (0, len(shown) - 1) else None
        found = forecast_errors(feature, sigmas)
        if stream in missed:
            found = (*found, plan_errors(feature, missed[stream]))
        for axes, errors in zip(panels, found, strict=True):
            steps = np.arange(len(feature) - len(errors), len(feature))
            axes.semilogy(steps, errors, color=colour, label=label, **marking_lone(errors))
    titles = ["reuse of the step before", "a straight line", name]
    for place, (axes, how) in enumerate(zip(panels, titles, strict=False)):
        text = f"{letter(before + place)}  forecast by {how}"
        axes.set_title(wrapped(text, 0.9 * TWO_COLUMNS / len(panels) - 0.3, 8))
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    panels[0].set_ylabel("error / size of the feature")
    if len(shown) > 1:
        lines = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(*lines, loc="outside lower center", ncols=2)


def plan_errors(feature: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Return by how much a plan's forecasts of a feature, `[T, D]`, err, over its size.

    Float64 `[T]`, nan at steps that compute the feature.
    """
    size = np.linalg.norm(feature, axis=1)
    errors = np.linalg.norm(missed @ feature, axis=1) / np.where(size > 0, size, 1.0)
    return np.where(missed.any(axis=1), errors, np.nan)


def main(arguments: argparse.Namespace) -> None:
    trajectory = Trajectory.load(arguments.trajectory)
    missed, name = {}, ""
    if arguments.plan:
        plan, path = Plan.load(arguments.plan), Path(arguments.plan)
        missed, name = errors_of(plan, trajectory), path.parent.name
    figure = draw(trajectory.features, trajectory.sigmas, missed, name, arguments.setting)
    save(figure, arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("trajectory", __doc__)
    parser.add_argument("--trajectory", required=True, help="of reproduction.stages.collect")
    parser.add_argument("--plan", nargs="?", help="LABEL/BUDGET.safetensors, to draw its forecasts")
    run(main, parser, outputs=["out"], inputs=["trajectory", "plan"])

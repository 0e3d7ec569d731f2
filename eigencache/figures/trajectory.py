"""Trajectory: how features move along the sampler's steps, and how well simple forecasts follow.

Above, one panel a stream (of many, a dozen evenly spread over the network): its features, all
numbers of a step together, projected on the two directions in which they vary most over the run, in
their true proportions. The line goes from the first step (ring) to the last (square), and the
percentages are the shares of the variance that the two directions hold. A smooth, plain curve can
be forecast from a few of its points.

Below, what a forecast of each step errs by, as a share of the feature's size: on the left if the
feature of the step before is used again, on the right if the last two are drawn on in a straight
line over the noise level; one line a stream, the darker the earlier in the network. Of streams of
image and text, the image's part is drawn.
"""

import argparse
from collections.abc import Mapping
from math import ceil

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eigencache.figures import TWO_COLUMNS, save, style
from eigencache.stages import run
from eigencache.trajectory import Trajectory

COLUMNS, PANEL, ERRORS = 4, 1.6, 2.1  # inches high: a panel with its title, and the lower part
PANELS = 12  # of more streams, so many are drawn above, evenly spread
NAME = 28  # characters of a name that fit above a panel


@style()
def draw(features: Mapping[str, np.ndarray], sigmas: np.ndarray) -> Figure:
    """Return the figure of features by stream, float `[T, ...]`, and noise levels, `[T + 1]`.

    Raises:
        ValueError: there is nothing to draw, or there are fewer than three steps.
    """
    shown = {
        name.removesuffix(".image"): np.asarray(feature, np.float64).reshape(len(feature), -1)
        for name, feature in features.items()
        if not name.endswith(".text")
    }
    if not shown or len(sigmas) < 4:
        raise ValueError("a trajectory of three steps and one stream at least can be drawn")
    places = np.linspace(0, len(shown) - 1, min(len(shown), PANELS)).round().astype(int)
    names = [list(shown)[place] for place in places]
    rows, columns = ceil(len(names) / COLUMNS), min(len(names), COLUMNS)
    figure = Figure(figsize=(TWO_COLUMNS, rows * PANEL + ERRORS))
    above, below = figure.subfigures(2, height_ratios=(rows * PANEL, ERRORS))
    panels = above.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        coordinates, shares = principal(shown[name])
        line = _path(axes, coordinates)
        _describe(axes, name, shares)
    for axes in panels[len(names) :]:
        axes.remove()
    bar = above.colorbar(line, ax=list(panels[: len(names)]), aspect=12 * rows, pad=0.02)
    bar.set_label("step")
    bar.outline.set_linewidth(0.5)
    _errors(below.subplots(1, 2, sharex=True, sharey=True), shown, sigmas)
    return figure


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


def _path(axes: Axes, coordinates: np.ndarray) -> LineCollection:
    """Draw a path that is coloured by step, and return its line."""
    points = coordinates[:, None]
    line = LineCollection(np.concatenate([points[:-1], points[1:]], 1), linewidth=1.2)
    line.set_array(np.arange(len(coordinates) - 1))
    line.set_clim(0, len(coordinates) - 1)
    axes.add_collection(line)
    colours = mpl.colormaps[mpl.rcParams["image.cmap"]](np.linspace(0, 1, len(coordinates)))
    axes.scatter(*coordinates.T, s=4, c=colours, linewidths=0, zorder=3)
    axes.plot(*coordinates[0], "o", color="black", markerfacecolor="none", markersize=6)
    axes.plot(*coordinates[-1], "s", color="black", markerfacecolor="none", markersize=5.5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    return line


def _describe(axes: Axes, name: str, shares: np.ndarray) -> None:
    if len(name) > NAME:
        name = "\n.".join(name.rsplit(".", 1))
    axes.set_title(name, size=7, pad=3)
    axes.set_xlabel(" + ".join(f"{100 * share:.0f} %" for share in shares), size=6.5, labelpad=2)


def _errors(panels, shown: Mapping[str, np.ndarray], sigmas: np.ndarray) -> None:
    """Draw the errors of both forecasts; the first stream and the last are named."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(shown)))
    for depth, ((name, feature), colour) in enumerate(zip(shown.items(), colours, strict=True)):
        label = name if depth in (0, len(shown) - 1) else None
        for i, errors in enumerate(forecast_errors(feature, sigmas)):
            steps = np.arange(i + 1, len(feature))
            panels[i].semilogy(steps, errors, color=colour, label=label)
    for axes, how in zip(panels, ("the step before, again", "a straight line"), strict=True):
        axes.set_title(f"forecast by {how}", size=8)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    panels[0].set_ylabel("error / size of the feature")
    panels[1].legend(loc="best")


def main(arguments: argparse.Namespace) -> None:
    trajectory = Trajectory.load(arguments.trajectory)
    save(draw(trajectory.features, trajectory.sigmas), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("trajectory", description=__doc__)
    parser.add_argument("--trajectory", required=True, help="of eigencache.stages.collect")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["trajectory"])

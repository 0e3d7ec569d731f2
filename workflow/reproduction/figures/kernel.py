"""Kernel: how similar a model's features are at any two sampler steps, and how low its rank is.

One row of panels per kernel (its tap, the features, and their normalisation). Left: how far the
features of two steps are from parallel, 1 - cosine, on a logarithmic scale; a kernel of several
streams is their mean. Middle: the kernel's eigenvalues as shares of their sum, which is the energy
(the mean square) of the features, and the energy that the leading ones leave out; vertical lines
mark how many keep 99 %, 99.9 % and 99.99 %. Right: the leading eigenvectors over the steps; their
signs have no meaning, so the largest entry is drawn as positive. Values below the rounding error
of float64 are not drawn.

Below them, if a kernel has it, how outputs answer errors of the latents (`Kernel.response`).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from eigencache.kernel import Kernel
from reproduction.figures._common import (
    FAINT,
    INK,
    MEASURED,
    TWO_COLUMNS,
    Heading,
    figure_parser,
    page,
    panel_title,
    save,
    style,
)

KEPT = (0.99, 0.999, 0.9999)
VECTORS = 4
ROW, RESPONSE = 2.2, 1.7  # inches high
CLOSEST = 1e-4  # a smaller 1 - cosine has the colour of this one
COLOURS, LINES = (INK, "#E08E0B", MEASURED, "#D277A8"), ("-", "--", "-.", ":")
NOTE = (
    "1 \N{MINUS SIGN} cosine: 0 where the features of two steps are parallel, 1 where they are "
    "orthogonal. Energy: the sum of the eigenvalues, the mean square of the features. The faster "
    "it falls with the rank, the fewer full steps the others can be forecast from."
)

RESPONSE_NOTE = (
    "An error of the latents changes the output by pull times the error, and by scatter times its "
    "size at right angles to it. With a positive pull the network removes errors, with a negative "
    "one it enlarges them; scatter cannot be foretold."
)


@style()
def draw(kernels: Mapping[str, Kernel], setting: str = "") -> Figure:
    """Return the figure of kernels by name, `TAP.FEATURES.NORMALISATION[.RUNS]`.

    Raises:
        ValueError: there is none, or one has no positive eigenvalue.
    """
    if not kernels:
        raise ValueError("no kernels: nothing to draw")
    answered = [kernel for kernel in kernels.values() if np.any(kernel.response)]
    heights = [ROW] * len(kernels) + [RESPONSE] * bool(answered)
    note = f"{NOTE} {RESPONSE_NOTE}" if answered else NOTE
    heading = Heading("How similar the features of any two steps are", setting, note)
    figure = page(TWO_COLUMNS, sum(heights), heading)
    parts = np.atleast_1d(figure.subfigures(len(heights), height_ratios=heights))
    for row, (part, (name, kernel)) in enumerate(zip(parts, kernels.items(), strict=False)):
        part.suptitle(_heading(name, len(kernel.streams)), size=7.5, x=0.01, ha="left")
        panels = part.subplots(1, 3, width_ratios=(1, 1.1, 1.25))
        shares, vectors = spectrum(kernel.matrix())
        _matrix(part, panels[0], kernel.matrix())
        _spectrum(panels[1], shares)
        _vectors(panels[2], vectors)
        for column, (axes, text) in enumerate(
            zip(panels, ("Distance of steps", "Energy by rank", "Eigenvectors"), strict=True)
        ):
            panel_title(axes, 3 * row + column, text)
    if answered:
        parts[-1].suptitle("Tap output", size=7.5, x=0.01, ha="left")
        axes = parts[-1].subplots()
        _response(axes, *answered[0].response)
        panel_title(axes, 3 * len(kernels), "How outputs answer errors of the latents")
    return figure


def distances(matrix: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of any two steps, `[T, T]`, from a kernel's matrix."""
    sizes = np.sqrt(np.diag(matrix))
    return 1 - matrix / np.where(sizes > 0, sizes, 1)[:, None] / np.where(sizes > 0, sizes, 1)


def spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a symmetric `[T, T]` matrix over their sum, and its eigenvectors.

    Returns:
        The shares, descending `[T]`, where those that rounding made negative count as zero; and
        the eigenvectors as columns `[T, T]` in the same order, their largest entry positive.

    Raises:
        ValueError: none is positive.
    """
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    if values[0] <= 0:
        raise ValueError("the kernel has no positive eigenvalue: not a second moment")
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    return values / values.sum(), vectors * np.where(largest < 0, -1, 1)


def ranks(shares: np.ndarray) -> list[int]:
    """Return, for each share of `KEPT`, the number of leading eigenvalues that keep as much."""
    kept = np.cumsum(shares)
    return [int(np.argmax(kept >= share * kept[-1])) + 1 for share in KEPT]


def left_out(shares: np.ndarray) -> np.ndarray:
    """Return the energy that the 1, 2 ... leading eigenvalues leave out, as shares `[T]`."""
    # Summed from the small end, or it would be lost in the rounding of 1 - kept.
    return np.append(np.cumsum(shares[::-1])[::-1][1:], 0)


def _heading(name: str, streams: int) -> str:
    tap, features, *rest = name.split(".")
    rest = [*rest, f"mean of {streams} streams"] if streams > 1 else rest
    told = [f"the first {part} runs" if part.isdigit() else part.replace("-", " ") for part in rest]
    return ", ".join([f"Tap {tap}", f"{features} features", *told])


def _matrix(figure: SubFigure, axes: Axes, matrix: np.ndarray) -> None:
    apart = distances(matrix)
    top = max(float(apart.max()), 10 * CLOSEST)
    image = axes.imshow(
        np.maximum(apart, CLOSEST), norm=LogNorm(CLOSEST, top), interpolation="nearest"
    )
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.set(xlabel="step", ylabel="step")
    bar = figure.colorbar(image, ax=axes, extend="min")
    bar.set_label("1 \N{MINUS SIGN} cosine", size=7)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=6.5)


def _spectrum(axes: Axes, shares: np.ndarray) -> None:
    least = shares[0] * len(shares) * np.finfo(float).eps
    rank = np.arange(1, len(shares) + 1)
    rest = left_out(shares)
    axes.set_yscale("log")
    axes.plot(rank[shares > least], shares[shares > least], "o-", color=INK,
              markersize=2, linewidth=0.7, label="eigenvalue")  # fmt: skip
    axes.plot(rank[rest > least], rest[rest > least], "s-", color=FAINT, markersize=2,
              linewidth=0.7, markerfacecolor="white", markeredgewidth=0.5,
              label="left out by the rank")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="rank", ylabel="share of the energy", xlim=(0, len(shares) + 1))
    for i, (share, r) in enumerate(zip(KEPT, ranks(shares), strict=True)):
        height = 0.98 - 0.11 * i  # lower from left to right: no line runs through a text
        axes.axvline(r, ymax=height, color=MEASURED, lw=0.8, ls=("-", "--", ":")[i], zorder=1.5)
        left = r < 0.5 * len(shares)
        axes.annotate(
            f"{100 * share:g} % at rank {r}", (r, height), (3 if left else -3, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            ha="left" if left else "right", size=6.5, color=MEASURED,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
        )  # fmt: skip
    # Below the axes: where the curves leave room within them differs from kernel to kernel.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, handlelength=1.5,
                columnspacing=1, borderaxespad=0, fontsize=6.5)  # fmt: skip


def _vectors(axes: Axes, vectors: np.ndarray) -> None:
    """Draw the leading eigenvectors, columns of `[T, T]`, over the steps."""
    axes.axhline(0, color=FAINT, linewidth=0.5, zorder=1.5)
    for i, vector in enumerate(vectors.T[:VECTORS]):
        axes.plot(vector, color=COLOURS[i], linestyle=LINES[i], label=f"{i + 1}")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="step", ylabel="eigenvector", xlim=(-0.5, len(vectors) - 0.5))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))  # room for the legend
    axes.legend(loc="upper center", ncols=VECTORS, handlelength=1.8, columnspacing=1)


def _response(axes: Axes, pull: np.ndarray, scatter: np.ndarray) -> None:
    """Draw the pull and the scatter, float64 `[T]` each, over the steps."""
    axes.axhline(0, color=FAINT, linewidth=0.5, zorder=1.5)
    axes.plot(pull, color=INK, label="pull")
    axes.plot(scatter, color=COLOURS[1], linestyle=LINES[1], label="scatter")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="step", ylabel="change / error", xlim=(-0.5, len(pull) - 0.5))
    axes.legend(loc="best", ncols=2, handlelength=1.8)


def main(arguments: argparse.Namespace) -> None:
    kernels = {path.stem: Kernel.load(path) for path in map(Path, arguments.kernels)}
    save(draw(kernels, arguments.setting), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = figure_parser("kernel", __doc__)
    parser.add_argument("--kernels", nargs="+", required=True, help="one row each")
    run(main, parser, outputs=["out"], inputs=["kernels"])

"""Kernel: how similar a model's features are at any two sampler steps, and how low its rank is.

One row per kernel (its tap, the features, and their normalisation). Left: its matrix, the mean over
streams if there are several. Middle: its eigenvalues as shares of their sum, which is the features'
energy, and the energy that the leading ones leave out; vertical lines mark how many keep 99 %, 99.9
% and 99.99 %. The faster both fall, the fewer full steps are needed to forecast the rest. Right:
the leading eigenvectors over the steps, the shapes that features are made of; their signs have no
meaning, so that the largest entry is drawn as positive. Values below the rounding error of float64
are not drawn.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from eigencache.kernel import Kernel
from reproduction.figures._common import TWO_COLUMNS, save, style, timestep_axis

KEPT = (0.99, 0.999, 0.9999)
VECTORS = 4
ROW = 2.15  # inches high
COLOURS, LINES = ("#111111", "#D55E00", "#0072B2", "#009E73"), ("-", "--", "-.", ":")


@style()
def draw(kernels: Mapping[str, Kernel]) -> Figure:
    """Return the figure of kernels by name, `TAP.FEATURES.NORMALISATION`.

    Raises:
        ValueError: there is none, or one has no positive eigenvalue.
    """
    if not kernels:
        raise ValueError("no kernels: nothing to draw")
    figure = Figure(figsize=(TWO_COLUMNS, ROW * len(kernels)))
    parts = np.atleast_1d(figure.subfigures(len(kernels)))
    for part, (name, kernel) in zip(parts, kernels.items(), strict=True):
        left, middle, right = part.subplots(1, 3, width_ratios=(1, 1.1, 1.25))
        shares, vectors = spectrum(kernel.matrix())
        _matrix(part, left, kernel)
        left.set_title(_heading(name, len(kernel.streams)), size=7.5, weight="bold", loc="left")
        _spectrum(middle, shares)
        _vectors(right, vectors, kernel.timesteps)
    return figure


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
    return f"{tap}, {features}\n{', '.join(rest)}"


def _matrix(figure, axes: Axes, kernel: Kernel) -> None:
    matrix = kernel.matrix()
    negative = matrix.min() < 0
    top = np.abs(matrix).max()
    # Zero is meaningful: without negative values it is the dark end, else the middle.
    image = axes.imshow(
        matrix, cmap="RdBu" if negative else None, vmin=-top if negative else 0, vmax=top,
        interpolation="nearest",
    )  # fmt: skip
    axes.grid(False)
    axes.spines[:].set_visible(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.set(xlabel="step", ylabel="step")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(kernel.normalisation.replace("-", " "), size=7)
    bar.outline.set_linewidth(0.5)
    bar.locator = MaxNLocator(5)
    bar.ax.tick_params(labelsize=6.5)


def _spectrum(axes: Axes, shares: np.ndarray) -> None:
    least = shares[0] * len(shares) * np.finfo(float).eps
    rank = np.arange(1, len(shares) + 1)
    rest = left_out(shares)
    axes.set_yscale("log")
    axes.plot(rank[shares > least], shares[shares > least], "o-", color="#111111",
              markersize=2, linewidth=0.7, label="eigenvalue")  # fmt: skip
    axes.plot(rank[rest > least], rest[rest > least], "s-", color="#767676", markersize=2,
              linewidth=0.7, markerfacecolor="white", markeredgewidth=0.5,
              label="left out by the rank")  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="rank", ylabel="share of the energy", xlim=(0, len(shares) + 1))
    for i, (share, r) in enumerate(zip(KEPT, ranks(shares), strict=True)):
        height = 0.98 - 0.11 * i  # lower from left to right: no line runs through a text
        axes.axvline(r, ymax=height, color="#0072B2", lw=0.8, ls=("-", "--", ":")[i], zorder=1.5)
        left = r < 0.5 * len(shares)
        axes.annotate(
            f"{100 * share:g} % at rank {r}", (r, height), (3 if left else -3, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            ha="left" if left else "right", size=6.5, color="#0072B2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
        )  # fmt: skip
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.68), handlelength=1.5, fontsize=6.5)


def _vectors(axes: Axes, vectors: np.ndarray, timesteps: np.ndarray) -> None:
    """Draw the leading eigenvectors, columns of `[T, T]`, over the steps."""
    axes.axhline(0, color="#767676", linewidth=0.5, zorder=1.5)
    for i, vector in enumerate(vectors.T[:VECTORS]):
        axes.plot(vector, color=COLOURS[i], linestyle=LINES[i], label=f"{i + 1}")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="step", ylabel="eigenvector", xlim=(-0.5, len(timesteps) - 0.5))
    timestep_axis(axes, timesteps)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.16 * (high - low))  # room for the legend
    axes.legend(loc="upper center", ncols=VECTORS, handlelength=1.8, columnspacing=1)


def main(arguments: argparse.Namespace) -> None:
    kernels = {path.stem: Kernel.load(path) for path in map(Path, arguments.kernels)}
    save(draw(kernels), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("kernel", description=__doc__)
    parser.add_argument("--kernels", nargs="+", required=True, help="one row each")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["kernels"])

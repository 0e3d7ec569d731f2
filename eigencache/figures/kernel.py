"""Kernel: how a model's features at any two sampler steps go together, and how few numbers say it.

Left, the second moment of the features at each pair of steps (of many streams: the mean). Right,
its eigenvalues as shares of their sum, the features' energy; vertical lines say how many leading
ones keep 99 %, 99.9 % and 99.99 % of it. The faster they fall, the fewer full steps it takes to
forecast the rest. Eigenvalues below the rounding error of float64 are not drawn.
"""

import argparse

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eigencache.figures import TWO_COLUMNS, save, style
from eigencache.kernel import Kernel
from eigencache.stages import run

KEPT = (0.99, 0.999, 0.9999)


@style()
def draw(matrix: np.ndarray, streams: int = 1) -> Figure:
    """Return the figure of a kernel matrix, float `[T, T]`, of `streams` streams.

    Raises:
        ValueError: the matrix is not square, is empty, or has no positive eigenvalue.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"a kernel matrix must be square and not empty, got {matrix.shape}")
    shares = spectrum(matrix)
    figure = Figure(figsize=(TWO_COLUMNS, 2.75))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _matrix(figure, left, matrix, streams)
    _spectrum(right, shares)
    return figure


def spectrum(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a symmetric `[T, T]` matrix over their sum, descending `[T]`.

    Those that rounding made negative count as zero.

    Raises:
        ValueError: none is positive.
    """
    values = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    if values[0] <= 0:
        raise ValueError("the kernel has no positive eigenvalue: not a second moment")
    return values / values.sum()


def ranks(shares: np.ndarray) -> list[int]:
    """Return, for each share of `KEPT`, the number of leading eigenvalues that keep as much."""
    kept = np.cumsum(shares)
    return [int(np.argmax(kept >= share * kept[-1])) + 1 for share in KEPT]


def _matrix(figure: Figure, axes: Axes, matrix: np.ndarray, streams: int) -> None:
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
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.set(xlabel="step", ylabel="step")
    mean = f"\n(mean of {streams} streams)" if streams > 1 else ""
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(f"second moment of features{mean}")
    bar.outline.set_linewidth(0.5)


def _spectrum(axes: Axes, shares: np.ndarray) -> None:
    drawn = shares[shares > shares[0] * len(shares) * np.finfo(float).eps]
    rank = np.arange(1, len(drawn) + 1)
    axes.semilogy(rank, drawn, "o-", color="#111111", markersize=2.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes.set(xlabel="rank", ylabel="eigenvalue / sum of all", xlim=(0, len(shares) + 1))
    for i, (share, r) in enumerate(zip(KEPT, ranks(shares), strict=True)):
        height = 0.98 - 0.085 * i  # lower from left to right: no line runs through a text
        line = ("-", "--", ":")[i]
        axes.axvline(r, ymax=height, color="#0072B2", linewidth=0.8, linestyle=line, zorder=1.5)
        left = r < 0.6 * len(shares)
        axes.annotate(
            f"{100 * share:g} % kept at rank {r}", (r, height), (3 if left else -3, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            ha="left" if left else "right", size=7, color="#0072B2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
        )  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    kernel = Kernel.load(arguments.kernel)
    save(draw(kernel.matrix(), len(kernel.streams)), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("kernel", description=__doc__)
    parser.add_argument("--kernel", required=True, help="a kernel of the second-moment kind")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["kernel"])

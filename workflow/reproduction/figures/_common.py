"""The figures: one module each, run as `python -m reproduction.figures.NAME ... --out A.pdf B.png`.

A figure reads only tidy files. Each module's `draw` makes it from loaded tables and arrays. This
module has what they share: the style, saving, and the looks of each method.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, cycle, product
from pathlib import Path
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from eigencache._files import replacing
from eigencache.plan import FEWER_STEPS, FULL

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
OURS = "EigenCache"

_STYLE = Path(__file__).with_name("style.mplstyle")
# No dates and no versions: the same input gives the same bytes.
_METADATA = {
    ".pdf": {"Creator": "EigenCache", "Producer": None, "CreationDate": None},
    ".png": {"Software": None},
}
_MARKERS = ("o", "s", "^", "v", "P", "X", "p", "<", ">")
_MUTED_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "d", "*")  # without likenesses
_LINES = ("-", "-.", ":")
_LIGHT, _DARKER = "#d0d0d0", "#9a9a9a"
_SPECIAL = MappingProxyType(
    {
        OURS: {
            "color": "#111111", "marker": "D", "linestyle": "-", "linewidth": 1.8, "zorder": 4,
            "markersize": 4.5,
        },
        FEWER_STEPS: {
            "color": "#767676", "marker": "o", "markerfacecolor": "white", "linestyle": "--",
            "zorder": 2.5,
        },
    }
)  # fmt: skip


def style():
    """Return a context, also a decorator, in which figures are drawn and saved alike everywhere.

    The user's own settings are ignored.
    """
    return mpl.style.context(_STYLE, after_reset=True)


def save(figure: Figure, paths: Iterable[str | os.PathLike]) -> None:
    """Write a figure to every path, whole or not at all; the suffix says PDF or PNG.

    Raises:
        ValueError: a suffix is neither `.pdf` nor `.png`; nothing is written.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.suffix not in _METADATA:
            raise ValueError(f"{path}: figures are written as {' or '.join(_METADATA)}")
    for path in paths:
        with style(), replacing(path) as part:
            figure.savefig(part, metadata=_METADATA[path.suffix])


def looks(
    labels: Iterable[str], coloured: Iterable[str] | None = None
) -> dict[str, Mapping[str, object]]:
    """Return how each method's line is drawn: label to keywords of `Axes.plot`.

    Our own method is dark and thick, fewer steps are dashed grey, and the rest take colours,
    markers and line styles in turn: the same order of labels gives the same looks in each figure.
    The full run is the reference and has none.

    Args:
        labels: of the methods.
        coloured: those that stand out; None means all. The others are thin and light grey, and
            differ only in their markers.
    """
    labels = [label for label in dict.fromkeys(labels) if label != FULL]
    coloured = set(labels if coloured is None else coloured)
    with style():
        colours = cycle(mpl.rcParams["axes.prop_cycle"].by_key()["color"])
    # The three cycles differ in length, so that many methods still differ in something.
    turns = zip(colours, cycle(_MARKERS), cycle(_LINES), strict=False)
    names = ("color", "marker", "linestyle")
    muted = (
        {"color": _LIGHT, "marker": marker, "markerfacecolor": face, "markeredgecolor": _DARKER,
         "markersize": 3, "markeredgewidth": 0.5, "linestyle": "-", "linewidth": 0.6, "zorder": 2}
        for face, marker in cycle(product(("white", _DARKER), _MUTED_MARKERS))
    )  # fmt: skip
    drawn = {}
    for label in labels:
        if label not in coloured:
            drawn[label] = next(muted)
        elif label in _SPECIAL:
            drawn[label] = _SPECIAL[label]
        else:
            drawn[label] = {**dict(zip(names, next(turns), strict=True)), "zorder": 3}
    return drawn


def of_first_reference(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of a tidy table that compare with its first reference, and that run's name.

    Raises:
        ValueError: the table is empty or has no column `reference`.
    """
    require(table, ["reference"], "table's rows")
    reference = table["reference"].iloc[0]
    return table[table["reference"] == reference], reference


def timestep_axis(axes: Axes, timesteps: np.ndarray) -> None:
    """Write the sampler's timesteps, float `[T]`, over those steps that the x axis has ticks at."""
    steps = [int(tick) for tick in axes.get_xticks() if tick in range(len(timesteps))]
    above = axes.secondary_xaxis("top")
    above.set_xticks(steps, [f"{timesteps[step]:.0f}" for step in steps])
    above.set_xlabel("timestep")


def note_left_out(axes: Axes, count: int, where: str = "infinity") -> None:
    """Say on the axes how many points have no place on them, if any, and where those lie."""
    if count:
        note = f"not drawn: {count} at {where}"
        axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", size=6.5)


def marking_lone(values: Iterable[float]) -> dict[str, object]:
    """Return keywords of `Axes.plot` that mark values whose neighbours are nan, if any, with a dot.

    A line alone would not show them.
    """
    there = ~np.isnan(np.asarray(values, float))
    lone = there & ~np.append(there[1:], False) & ~np.append(False, there[:-1])
    if not lone.any():
        return {}
    return {"marker": ".", "markersize": 3, "markevery": np.flatnonzero(lone).tolist()}


def require(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise a ValueError that says what is wrong if a table is empty or lacks a column."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"the {what} lack columns {missing}; they have {list(table.columns)}")
    if table.empty:
        raise ValueError(f"the {what} have no rows: nothing to draw")


@style()
def wrapped(text: str, width: float, size: float, lines: int | None = None) -> str:
    """Return `text` in lines of at most `width` inches, as set in the style's font at `size` pt.

    Lines end at spaces and after hyphens, or within a word that is longer than a line. Of text that
    takes more than `lines` lines, what fits is kept and ends with an ellipsis.
    """

    def fits(line: str) -> bool:
        """Whether a line fits; one that is much too long letter by letter is not even measured."""
        estimates = accumulate(_advance(letter, size) for letter in line)
        return (
            all(estimate < 1.5 * width for estimate in estimates) and _inches(line, size) <= width
        )

    def fitting(parts: Sequence[str], end: str = "") -> int:
        """Return how many parts fit into a line that has this end."""
        count = 0
        while count < len(parts) and fits("".join(parts[: count + 1]).strip() + end):
            count += 1
        return count

    made: list[str] = []
    rest = re.findall(r"\s+|[^\s-]+-*|-+", text.strip())
    while rest:
        last = len(made) + 1 == lines
        count = fitting(rest)
        if last and count < len(rest):
            count = fitting(rest, "…")
            kept = "".join(rest[:count]) or rest[0][: max(fitting(rest[0], "…"), 1)]
            made.append(f"{kept.strip()}…")
            break
        if not count:
            letters = max(fitting(rest[0]), 1)
            rest[:1] = [rest[0][:letters], rest[0][letters:]]
            count = 1
        made.append("".join(rest[:count]).strip())
        rest = rest[count:]
        if rest and rest[0].isspace():
            rest = rest[1:]
    return "\n".join(made)


@style()
def inches(line: str, size: float, weight: str = "normal") -> float:
    """Return the width of a line of text, in inches, as set in the style's font at `size` pt."""
    return _inches(line, size, weight)


@cache
def _advance(letter: str, size: float) -> float:
    """Return by how much a letter makes a line wider, in inches."""
    return _inches(f"l{letter}l", size) - _inches("ll", size)


def _inches(line: str, size: float, weight: str = "normal") -> float:
    """Return the same where the style is set already, which takes longer than measuring."""
    plain = line.replace("$", r"\$")  # or it would be set as mathematics
    font = FontProperties(weight=weight)
    return TextPath((0, 0), plain, size=size, prop=font).get_extents().width / 72

"""The figures: one module each, run as `python -m eigencache.figures.NAME ... --out A.pdf B.png`.

A figure reads tidy files alone. Each module's `draw` makes it of loaded tables and arrays; what
all of them share is here: the style, how to save, and how a method looks.
"""

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from eigencache.files import replacing
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
_LINES = ("-", "-.", ":")
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

    Settings of the user's own do not count.
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


def looks(labels: Iterable[str]) -> dict[str, Mapping[str, object]]:
    """Return how each method's line is drawn: label to keywords of `Axes.plot`.

    Our own method is dark and thick, fewer steps are dashed grey, and the rest take colours,
    markers and line styles in turn: the same order of labels gives the same looks in each figure.
    The full run is the reference and has none.
    """
    with style():
        colours = cycle(mpl.rcParams["axes.prop_cycle"].by_key()["color"])
    # The three cycles differ in length, so that many methods still differ in something.
    turns = zip(colours, cycle(_MARKERS), cycle(_LINES), strict=False)
    names = ("color", "marker", "linestyle")
    return {
        label: _SPECIAL.get(label) or {**dict(zip(names, next(turns), strict=True)), "zorder": 3}
        for label in dict.fromkeys(labels)
        if label != FULL
    }


def note_infinite(axes: Axes, count: int) -> None:
    """Say on the axes how many points are infinite, if any, since those cannot be drawn."""
    if count:
        note = f"not drawn: {count} at infinity"
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

    Of text that takes more than `lines` lines, what fits is kept and ends with an ellipsis.
    """
    for chars in range(len(text), 0, -1):
        # Below two characters a line there is no room for the ellipsis.
        kept = textwrap.wrap(text, chars, max_lines=lines if chars > 1 else None, placeholder="…")
        if chars == 1 or max(_inches(line, size) for line in kept) <= width:
            return "\n".join(kept)
    return text


def _inches(line: str, size: float) -> float:
    """Return the width of a line of text, in inches."""
    plain = line.replace("$", r"\$")  # or it would be set as mathematics
    return TextPath((0, 0), plain, size=size).get_extents().width / 72

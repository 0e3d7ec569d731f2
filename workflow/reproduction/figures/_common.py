"""What the figures share: the style, the page with its heading, labels, looks and saving."""

import argparse
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, cycle, product
from math import ceil
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from eigencache._files import replacing
from eigencache.plan import FEWER_STEPS, FULL

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches
OURS = "EigenCache"
MEASURED, INK, FAINT = "#0B5FA5", "#1b1d21", "#5f646d"
BUDGET_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
NOTE_PT, NAME_PT = 6.5, 7

_HERE = Path(__file__).parent
_STYLE = _HERE / "style.mplstyle"
_FONTS = ("roboto-regular.ttf", "roboto-bold.ttf")
# What a file says of its maker. No dates and no versions: the same input gives the same bytes.
_METADATA = {
    ".pdf": {"Creator": OURS, "Producer": None, "CreationDate": None},
    ".png": {"Software": OURS},
}
_MARKERS = ("o", "s", "^", "v", "P", "X", "p", "<", ">")
_MUTED_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "d", "*")  # these differ in outline
_LINES = ("-", "-.", ":")
_TONES = (("white", 0.0), ("black", 0.45), ("white", 0.45))  # of the colours, in turn
_LIGHT, _DARKER = "#d4d6da", "#9a9ea6"
_SPECIAL: Mapping[str, Mapping[str, object]] = {
    OURS: {"color": "#B3001B", "marker": "D", "linestyle": "-", "linewidth": 2.2, "zorder": 4,
           "markersize": 5},
    FEWER_STEPS: {"color": "#6a6e76", "marker": "o", "markerfacecolor": "white",
                  "linestyle": (0, (3, 1.5)), "zorder": 2.5},
}  # fmt: skip

for _font in _FONTS:
    fontManager.addfont(_HERE / _font)
    # Ahead of a font of the same name that the machine may have.
    fontManager.ttflist.insert(0, fontManager.ttflist.pop())


def style():
    """Return a context, also a decorator, in which figures look the same on every machine.

    The user's own settings are ignored.
    """
    return mpl.style.context(_STYLE, after_reset=True)


def figure_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a figure's command line with the options that all figures have."""
    parser = argparse.ArgumentParser(name, description=description)
    parser.add_argument("--labels", nargs="*", default=[], help="all methods; they fix the colours")
    parser.add_argument("--setting", default="", help="model, steps and prompts, for the heading")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    return parser


def save(figure: Figure, paths: Iterable[str | os.PathLike]) -> None:
    """Write a figure to every path, whole or not at all; the suffix says PDF or PNG.

    A file states the figure's label as its title.

    Raises:
        ValueError: a suffix is neither `.pdf` nor `.png`; nothing is written.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.suffix not in _METADATA:
            raise ValueError(f"{path}: figures are written as {' or '.join(_METADATA)}")
    for path in paths:
        with style(), replacing(path) as part:
            title = {"Title": figure.get_label()} if figure.get_label() else {}
            figure.savefig(part, metadata=_METADATA[path.suffix] | title)


# ---- The page


class Heading(NamedTuple):
    """What stands above and below the panels of a figure.

    Attributes:
        title: what the figure shows.
        setting: the model, the steps, the prompts.
        note: sentences that a reader needs to understand the panels.
    """

    title: str
    setting: str = ""
    note: str = ""

    def above(self, width: float) -> float:
        """Return the height in inches of title and setting on a page of some width."""
        return 0.08 + sum(map(_tall, *zip(*self._lines(width), strict=True)))

    def below(self, width: float) -> float:
        """Return the height in inches of the note."""
        return _tall(self._note(width), NOTE_PT) + 0.1 if self.note else 0.0

    def draw(self, figure: Figure) -> None:
        """Write title and setting at the top of a figure, and the note at its bottom.

        The title becomes the figure's label.
        """
        figure.set_label(self.title)
        width, height = figure.get_size_inches()
        place = {"x": MARGIN / width, "ha": "left", "parse_math": False}
        top = height - 0.06
        for (text, size), look in zip(
            self._lines(width), ({"weight": "bold"}, {"color": FAINT}), strict=True
        ):
            figure.text(y=top / height, s=text, size=size, va="top", **look, **place)
            top -= _tall(text, size)
        figure.text(
            y=0.04 / height, s=self._note(width), size=NOTE_PT, va="bottom", color=FAINT,
            linespacing=1.15, **place,
        )  # fmt: skip

    def _lines(self, width: float) -> list[tuple[str, float]]:
        return [
            (wrapped(text, 0.97 * width - 2 * MARGIN, size, weight=weight), size)
            for text, size, weight in (
                (self.title, 9, "bold"),
                (self.setting, NAME_PT, "normal"),
            )
        ]

    def _note(self, width: float) -> str:
        return wrapped(self.note, 0.97 * width - 2 * MARGIN, NOTE_PT)


MARGIN, LINE = 0.06, 1.4  # inches left and right of a heading; distance of lines in font sizes


@style()
def page(width: float, height: float, heading: Heading) -> Figure:
    """Return a figure with its heading and note, whose layout keeps to what lies between them.

    Args:
        width: of the page in inches.
        height: of the part for the panels.
        heading: what stands above and below.
    """
    below = heading.below(width)
    whole = heading.above(width) + height + below
    figure = Figure(figsize=(width, whole))
    figure.get_layout_engine().set(rect=_exact(below / whole, height / whole))
    heading.draw(figure)
    return figure


def legend_below(figure: Figure, handles, labels: Sequence[str], ncols: int) -> None:
    """Draw a legend below the panels of a page, above its note.

    Layouts make room for a legend at the edge of the figure alone, so the room is made here.
    """
    engine = figure.get_layout_engine()
    _, bottom, _, height = engine.get()["rect"]
    tall = (0.165 * ceil(len(labels) / ncols) + 0.06) / figure.get_size_inches()[1]
    engine.set(rect=_exact(bottom + tall, height - tall))
    figure.legend(
        handles, labels, loc="lower center", ncols=ncols, bbox_to_anchor=(0.5, bottom),
        borderaxespad=0,
    )  # fmt: skip


def _exact(bottom: float, height: float) -> tuple[float, float, float, float]:
    """Return a layout's rectangle in numbers of few bits.

    The solver of layouts takes its constraints in an order that varies from run to run: sums of
    such numbers are the same in any order, and so are the files to the byte.
    """
    return 0, round(1024 * bottom) / 1024, 1, round(1024 * height) / 1024


def panel_title(axes: Axes, place: int, text: str = "", **look) -> None:
    """Write a panel's letter, the first for place 0, and what it shows."""
    axes.set_title(f"{letter(place)}  {text}".strip(), parse_math=False, **look)


def letter(place: int) -> str:
    """Return the letter of a panel: a, b ... z, aa, ab ..."""
    return (letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def _tall(text: str, size: float) -> float:
    """Return the height of lines of text in inches."""
    return LINE * size / 72 * (text.count("\n") + 1) if text else 0.0


# ---- Looks and labels


def looks(
    labels: Iterable[str], coloured: Iterable[str] | None = None
) -> dict[str, Mapping[str, object]]:
    """Return how each method's line is drawn: label to keywords of `Axes.plot`.

    EigenCache is red and thick, fewer steps are dashed grey, and the rest take colours, markers and
    line styles in turn, whether or not they stand out. Every figure is given all labels of the
    experiment in one order, so that a method looks the same in all in which it stands out. The full
    run is the reference and has none.

    Args:
        labels: of the methods.
        coloured: those that stand out; None means all. The others are thin and light grey, and
            differ only in their markers.
    """
    labels = [label for label in dict.fromkeys(labels) if label != FULL]
    coloured = set(labels if coloured is None else coloured)
    with style():
        base = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    # A few of many methods stand out, wherever they are among all: two seldom share a tone.
    colours = cycle(_mixed(colour, *tone) for tone in _TONES for colour in base)
    # The three cycles differ in length, so that many methods still differ in something.
    turns = zip(colours, cycle(_MARKERS), cycle(_LINES), strict=False)
    names = ("color", "marker", "linestyle")
    muted = (
        {"color": _LIGHT, "marker": marker, "markerfacecolor": face, "markeredgecolor": _DARKER,
         "markersize": 3, "markeredgewidth": 0.5, "linestyle": "-", "linewidth": 0.6, "zorder": 2}
        for face, marker in cycle(product(("white", _DARKER), _MUTED_MARKERS))
    )  # fmt: skip
    drawn: dict[str, Mapping[str, object]] = {}
    for label in labels:
        own = _SPECIAL.get(label) or {**dict(zip(names, next(turns), strict=True)), "zorder": 3}
        drawn[label] = own if label in coloured else next(muted)
    return drawn


def _mixed(colour: str, other: str, share: float) -> str:
    """Return a colour with a share of another in it."""
    parts = np.array([mpl.colors.to_rgb(colour), mpl.colors.to_rgb(other)])
    return mpl.colors.to_hex(np.array([1 - share, share]) @ parts)


def looks_of(
    present: Collection[str], labels: Sequence[str], coloured: Iterable[str] | None = None
) -> dict[str, Mapping[str, object]]:
    """Return the looks of the methods of a figure, by the order of all of the experiment's."""
    drawn = looks([*labels, *present], coloured)
    return {label: drawn[label] for label in dict.fromkeys(present) if label in drawn}


def budget_colours(count: int) -> list[str]:
    """Return a colour for each of some budgets, from light for the smallest to dark."""
    ramp = mpl.colormaps["cividis"](np.linspace(0.72, 0.05, count) if count > 1 else [0.2])
    return [mpl.colors.to_hex(colour) for colour in ramp]


def stands_out(look: Mapping[str, object]) -> bool:
    """Whether a method's look is not one of the grey ones."""
    return look["zorder"] > 2  # type: ignore[operator]


def label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], drawn: Mapping[str, Mapping[str, object]],
    size: tuple[float, float],
) -> None:  # fmt: skip
    """Write the name of each line near its right end, where it covers no other name.

    Names lie right of the ends and cover no other name and no point; a thin line joins a name to
    an end that is not beside it. Limits and scales must be set.

    Args:
        axes: with lines.
        ends: the last point of each line, by label.
        drawn: the looks of the methods.
        size: width and height of the axes in inches, about.
    """
    if not ends:
        return
    to_axes = axes.transScale + axes.transLimits
    high = 1.2 * NAME_PT / 72 / size[1]
    lines = [line.get_xydata() for line in axes.get_lines() if line.get_color() != _LIGHT]
    points = to_axes.transform(np.concatenate(lines))
    wide, tall = 0.04 / size[0], 0.03 / size[1]
    boxes = [
        (x - wide, x + wide, y - tall, y + tall) for x, y in points[np.isfinite(points).all(1)]
    ]
    wanted = {label: to_axes.transform(end) for label, end in ends.items()}
    # From the right, or names would lie on lines to the names of ends further right.
    for label, (x, y) in sorted(wanted.items(), key=lambda item: tuple(-item[1].round(3))):
        text = wrapped(label, 1.5, NAME_PT, lines=1)
        wide = (inches(text, NAME_PT, _weight(label)) + 0.05) / size[0]
        left = x + 0.07 / size[0]
        free = (
            place
            for place in y + high / 4 * np.stack([-np.arange(200), np.arange(200)], 1).ravel()
            if high / 2 <= place <= 1 - high / 2
            and not any(
                left < b[1] and b[0] < left + wide
                and place - high / 2 < b[3] - 1e-9 and b[2] + 1e-9 < place + high / 2
                for b in boxes
            )
        )  # fmt: skip
        place = next(free, y)
        boxes.append((left, left + wide, place - high / 2, place + high / 2))
        moved = abs(place - y) > 0.6 * high
        colour = drawn[label]["color"] if stands_out(drawn[label]) else FAINT
        axes.annotate(
            text, ends[label], (left + 0.06 / size[0] * moved, place), textcoords="axes fraction",
            va="center", ha="left", size=NAME_PT, color=colour, weight=_weight(label), zorder=6,
            parse_math=False, path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 1, "shrinkB": 3,
                        "relpos": (0, 0.5)}
            if moved else None,
        )  # fmt: skip


def name_inches(labels: Iterable[str]) -> float:
    """Return the width in inches of the longest name that `label_ends` writes."""
    return max(inches(wrapped(k, 1.5, NAME_PT, lines=1), NAME_PT, _weight(k)) for k in labels)


def _weight(label: str) -> str:
    return "bold" if label == OURS else "normal"


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
        axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", size=NOTE_PT)


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


@cache
@style()
def wrapped(
    text: str, width: float, size: float, lines: int | None = None, weight: str = "normal"
) -> str:
    """Return `text` in lines of at most `width` inches, as set in the style's font at `size` pt.

    Lines end at spaces and after hyphens, or within a word that is longer than a line. Of text that
    takes more than `lines` lines, what fits is kept and ends with an ellipsis.
    """

    def fits(line: str) -> bool:
        """Whether a line fits; one that is much too long letter by letter is not even measured."""
        estimates = accumulate(_advance(one, size) for one in line)
        short = all(estimate < 1.5 * width for estimate in estimates)
        return short and _inches(line, size, weight) <= width

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
    # Of the control points: of the curves themselves it takes ten times as long.
    points = TextPath((0, 0), plain, size=size, prop=font).vertices
    return float(np.ptp(points[:, 0])) / 72 if len(points) else 0.0

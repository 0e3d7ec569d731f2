"""Typesetting: tables of measured values as Markdown and as LaTeX."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Mark = Literal["", "bold", "underlined"]

NONE, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"  # NONE is shown where nothing was measured

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega"
)
_TEX = MappingProxyType(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
        "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textquoteleft{}",
        "'": r"\textquoteright{}", '"': r"\textquotedblright{}", "…": r"\dots{}",
        "·": r"\textperiodcentered{}", "—": r"\textemdash{}", NONE: r"\textendash{}",
        MINUS: "$-$", TIMES: r"$\times$", "±": r"$\pm$", "∞": r"$\infty$", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "°": r"$^\circ$", "\n": " ",
        "\t": " ", **dict(zip(*2 * ["ßæœøÆŒØåÅłŁı"], strict=True)),
        **dict(
            zip("αβγδεζηθικλμνξπρστυφχψω", (rf"$\{name}$" for name in _GREEK.split()), strict=True)
        ),
    }
)  # fmt: skip
# Accents that pdflatex can put on a letter in any font encoding.
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
_MARKDOWN = str.maketrans(
    {character: f"\\{character}" for character in r"\`*_[]<>|~$&#"} | {"\n": " "}
)

# The same file makes a page of its own, as wide and high as the table, and can be \input: where a
# document has begun, LaTeX has made \documentclass the error \@twoclasseserror.
_LATEX = r"""% pdflatex makes a page of this file; \input in a paper with booktabs it is a tabular.
% {title}
\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass
\let\EndOfTable\relax
\else
\documentclass{{article}}
\usepackage{{booktabs}}
\newsavebox{{\Table}}\newsavebox{{\Page}}
\def\EndOfTable{{\end{{lrbox}}
\begin{{lrbox}}{{\Page}}\begin{{minipage}}{{\wd\Table}}
\usebox{{\Table}}\par\medskip\raggedright\footnotesize
{notes}
\end{{minipage}}\end{{lrbox}}
\pdfpagewidth=\dimexpr\wd\Page+16mm\relax
\pdfpageheight=\dimexpr\ht\Page+\dp\Page+16mm\relax
\hoffset=\dimexpr8mm-1in\relax \voffset=\hoffset
\shipout\box\Page
\end{{document}}}}
\begin{{document}}
\begin{{lrbox}}{{\Table}}%
\fi
{tabular}%
\EndOfTable
"""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says, plain.
        detail: smaller text after it, such as an interval.
        mark: how it stands out: bold, underlined or not.
    """

    text: str
    detail: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """A table in groups of rows.

    Attributes:
        title: of the whole.
        notes: how to read it, in sentences.
        heads: of the columns.
        groups: heading to the rows below it, each one cell a column.
        left: how many of the first columns are words, which stand left; the others are numbers.
    """

    title: str
    notes: Sequence[str]
    heads: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[Cell]]]
    left: int = 1


def number(value: float, digits: int, signed: bool = False) -> str:
    """Return a number with a number of decimals for reading; nan is a dash."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", MINUS)


def measured(
    value: float, low: float, high: float, digits: int, signed: bool = False,
    mark: Mark = "",
) -> Cell:  # fmt: skip
    """Return the cell of a value with its interval, if that is finite and has any width."""
    detail = ""
    if math.isfinite(low) and math.isfinite(high) and low < high:
        detail = f"[{number(low, digits, signed)}, {number(high, digits, signed)}]"
    return Cell(number(value, digits, signed), detail, mark)


def markdown(sheet: Sheet) -> str:
    """Return a sheet as a Markdown document, with a table for each group."""
    lines = [f"# {_plain(sheet.title)}", "", " ".join(map(_plain, sheet.notes))]
    rule = ["---"] * sheet.left + ["---:"] * (len(sheet.heads) - sheet.left)
    for heading, rows in sheet.groups.items():
        lines += ["", f"## {_plain(heading)}", ""]
        table = [map(_plain, sheet.heads), rule, *(map(_markdown_cell, row) for row in rows)]
        lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([*lines, ""])


def latex(sheet: Sheet) -> str:
    r"""Return a sheet as a LaTeX document that is one `tabular` in a paper that has it \input."""
    split = [_has_detail(sheet, i) for i in range(len(sheet.heads))]
    kinds = ["l"] * sheet.left + ["r"] * (len(sheet.heads) - sheet.left)
    columns = "".join(k + r"@{\ }l" * two for k, two in zip(kinds, split, strict=True))
    heads = map(_tex_head, sheet.heads, kinds, split)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_row(heads)]
    for heading, rows in sheet.groups.items():
        group = _across(len(sheet.heads) + sum(split), "l", rf"\emph{{{escape(heading)}}}")
        lines += [r"\midrule", _tex_row([group])]
        lines += [_tex_row(map(_tex_cell, row, split)) for row in rows]
    tabular = "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
    notes = "\n".join(map(escape, sheet.notes))
    return _LATEX.format(title=escape(sheet.title), notes=notes, tabular=tabular)


def escape(text: str) -> str:
    """Return plain text as LaTeX in which every character shows as itself.

    A character that pdflatex has no glyph for in its usual fonts is written as its code point.
    """
    escaped = "".join(map(_tex_character, unicodedata.normalize("NFC", text)))
    return re.sub("-(?=-)", "-{}", escaped)  # or two would be set as a dash


def _tex_character(character: str) -> str:
    if character in _TEX:
        return _TEX[character]
    if character.isascii() and character.isprintable():
        return character
    base, *accents = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and accents and set(accents) <= _ACCENTS:
        return character
    kind, _, code = unicodedata.decomposition(character).partition(" ")
    if kind in ("<super>", "<sub>"):
        name = {"<super>": "textsuperscript", "<sub>": "textsubscript"}[kind]
        return rf"\{name}{{{''.join(_tex_character(chr(int(c, 16))) for c in code.split())}}}"
    return f"[U+{ord(character):04X}]"


def _has_detail(sheet: Sheet, column: int) -> bool:
    return any(row[column].detail for rows in sheet.groups.values() for row in rows)


def _tex_head(head: str, kind: str, split: bool) -> str:
    """Return the head of a column, with text in brackets on a line of its own."""
    words = escape(head).replace(" (", r"\\(")
    if r"\\" in words:
        words = rf"\begin{{tabular}}[b]{{@{{}}{kind}@{{}}}}{words}\end{{tabular}}"
    return _across(2, kind, words) if split else words


def _tex_cell(cell: Cell, split: bool) -> str:
    """Return a cell and, if its column is split, the cell of its detail."""
    command = {"": "", "bold": r"\textbf", "underlined": r"\underline"}[cell.mark]
    text = rf"{command}{{{escape(cell.text)}}}" if command else escape(cell.text)
    detail = rf"{{\scriptsize {escape(cell.detail)}}}" if cell.detail else ""
    return f"{text} & {detail}" if split else text


def _across(count: int, kind: str, text: str) -> str:
    return rf"\multicolumn{{{count}}}{{{kind}}}{{{text}}}"


def _tex_row(cells: Iterable[str]) -> str:
    row = " & ".join(cells) + r" \\"
    return "{}" + row if row[0] in "[*" else row  # or it would be an option of the row before


def _markdown_cell(cell: Cell) -> str:
    before, after = {"": ("", ""), "bold": ("**", "**"), "underlined": ("<ins>", "</ins>")}[
        cell.mark
    ]
    return f"{before}{_plain(cell.text)}{after}" + (f" {cell.detail}" if cell.detail else "")


def _plain(text: str) -> str:
    """Return plain text as Markdown in which every character shows as itself."""
    return text.translate(_MARKDOWN)

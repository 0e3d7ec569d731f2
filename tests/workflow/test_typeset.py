"""Tables as Markdown and LaTeX: what a reader of the rendered document sees."""

# ruff: noqa: RUF001

import math
import re
import string
import subprocess

import numpy as np
import pytest
from helpers import compiled, needs_latex

from reproduction.tables.typeset import Cell, Sheet, escape, latex, markdown, measured, number

# Labels, and what is read in a PDF: the underscore, being a rule, is no character there.
NASTY = {
    r"50%_of #1 & ~{x}^2 \input{y} $z$": r"50%of #1 & ˜{x}ˆ2 \input{y} $z$",
    "a--b---c": "a--b---c",
    "<i>|`code`|</i>": "<i>|‘code‘|</i>",
    "[optional]": "[optional]",
    "*starred": "*starred",
    "10⁻⁶": "10−6",
    "x₂": "x2",
    "café ß": "café ß",
    "λ and σ": "λ and σ",
    "±0.5 °C": "±0.5 ◦ C",
    string.punctuation: r"""!”#$%&’()*+,-./:;<=>?@[\]ˆ‘{|}˜""",
}


def sheet(labels=("a", "b"), cell=None):
    cell = cell or Cell("1.50", "[1.00, 2.00]", "bold")
    rows = [[Cell(label), Cell("−2.00"), cell] for label in labels]
    return Sheet("Title", ["One note.", "100 % & more."], ["name", "loss (dB) ↓", "gain"],
                 {"7 full steps": rows, "9 full steps": rows[:1]})  # fmt: skip


# ---- Numbers


@pytest.mark.parametrize(
    ("value", "digits", "signed", "shown"),
    [(1.005, 1, False, "1.0"), (-3.14159, 2, False, "−3.14"), (2, 2, True, "+2.00"),
     (-2, 0, True, "−2"), (math.inf, 2, False, "∞"), (-math.inf, 2, True, "−∞"),
     (math.nan, 2, False, "–")],
)  # fmt: skip
def test_number_is_as_it_is_read(value, digits, signed, shown):
    assert number(value, digits, signed) == shown


def test_measured_has_its_interval_if_that_says_anything():
    assert measured(1.0, -0.5, 2.25, 2) == Cell("1.00", "[−0.50, 2.25]")
    assert measured(1.0, 0.5, 2.0, 1, signed=True, mark="bold") == Cell(
        "+1.0", "[+0.5, +2.0]", "bold"
    )
    for ends in [(np.nan, np.nan), (1.0, 1.0), (np.inf, np.inf)]:
        assert measured(1.0, *ends, 2) == Cell("1.00")


# ---- Markdown


def test_markdown_has_a_table_for_each_group():
    assert markdown(sheet(["a|b", "c_d*"])) == "\n".join(
        [
            "# Title", "", r"One note. 100 % \& more.", "", "## 7 full steps", "",
            "| name | loss (dB) ↓ | gain |", "| --- | ---: | ---: |",
            r"| a\|b | −2.00 | **1.50** [1.00, 2.00] |",
            r"| c\_d\* | −2.00 | **1.50** [1.00, 2.00] |",
            "", "## 9 full steps", "", "| name | loss (dB) ↓ | gain |", "| --- | ---: | ---: |",
            r"| a\|b | −2.00 | **1.50** [1.00, 2.00] |", "",
        ]
    )  # fmt: skip


def test_second_best_is_underlined_where_html_is_shown():
    assert "| <ins>2</ins> |" in markdown(sheet(["a"], Cell("2", mark="underlined")))


@pytest.mark.parametrize("label", NASTY)
def test_markdown_shows_every_character_as_itself(label):
    document = pytest.importorskip("markdown_it").MarkdownIt().enable("table")
    tokens = document.parse(markdown(sheet([label])))
    cell = tokens[[token.type for token in tokens].index("td_open") + 1]
    assert "".join(child.content for child in cell.children) == label


# ---- LaTeX


@needs_latex
def test_latex_compiles_as_it_is(tmp_path):
    words = compiled(latex(sheet()), tmp_path)
    assert words.split() == [
        "loss", "name", "(dB)", "↓", "gain", "7", "full", "steps",
        "a", "−2.00", "1.50", "[1.00,", "2.00]", "b", "−2.00", "1.50", "[1.00,", "2.00]",
        "9", "full", "steps", "a", "−2.00", "1.50", "[1.00,", "2.00]",
        "One", "note.", "100", "%", "&", "more.",
    ]  # fmt: skip


@needs_latex
def test_latex_is_one_tabular_in_a_paper(tmp_path):
    (tmp_path / "rows.tex").write_text(latex(sheet()), encoding="utf-8")
    words = compiled(
        r"""\documentclass{article}\usepackage{booktabs}\begin{document}\pagestyle{empty}
        \begin{table}\caption{Ours.}\centering\input{rows}\end{table}
        Before \input{rows}after.\end{document}""",
        tmp_path,
    )
    assert words.count("7 full steps") == 2 and "One note" not in words
    assert "Before" in words and "after." in words and "Table 1: Ours." in words


@needs_latex
def test_latex_shows_every_character_as_itself(tmp_path):
    shown = "".join(compiled(latex(sheet(list(NASTY))), tmp_path).split())
    assert [label for label, read in NASTY.items() if "".join(read.split()) not in shown] == []


@needs_latex
def test_a_character_without_a_glyph_is_named(tmp_path):
    words = compiled(latex(sheet(["図 🎉 ą"])), tmp_path)
    assert "[U+56F3] [U+1F389] [U+0105]" in words


@needs_latex
def test_latex_page_is_as_large_as_its_table(tmp_path):
    compiled(latex(sheet([f"a method of a long name, {i}" for i in range(120)])), tmp_path)
    facts = subprocess.run(
        ["pdfinfo", "table.pdf"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    width, height = map(float, re.search(r"Page size: +([\d.]+) x ([\d.]+)", facts).groups())
    assert "Pages:           1" in facts and height > 1400 and width < 400


def test_plain_words_stay_plain():
    assert escape("TaylorSeer-1 (baseline)") == "TaylorSeer-1 (baseline)"

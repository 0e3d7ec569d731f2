"""A result depends on the code that made it, and on no other."""

import pytest

from reproduction.provenance import code
from reproduction.provenance.code import source_hash, sources


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package of some modules; files are written into it by a function."""
    monkeypatch.setattr(code, "PACKAGES", {"toy": tmp_path / "toy"})
    monkeypatch.setattr(code, "ROWS", ("toy.table.TABLE",))

    def write(files):
        for name, text in files.items():
            path = tmp_path / f"toy/{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        code.forget()

    write({"__init__": "", "a": "from toy.b import x\n", "b": "x = 1\n", "c": "x = 1\n"})
    yield write
    monkeypatch.undo()
    code.forget()


def test_imports_are_followed():
    planning = sources("reproduction.stages.plan")
    assert {"reproduction.stages.plan", "eigencache.design", "eigencache.predictors._kriging"} <= {
        *planning
    }


def test_unknown_module_is_refused():
    with pytest.raises(ModuleNotFoundError, match=r"eigencache\.none"):
        source_hash("eigencache.none")


def test_edit_of_an_imported_file_changes_the_hash(toy):
    before = source_hash("toy.a")
    toy({"c": "x = 2\n"})
    assert source_hash("toy.a") == before
    toy({"b": "x = 2\n"})
    assert source_hash("toy.a") != before


def test_comments_docstrings_and_layout_do_not_count(toy):
    toy({"b": '"""One."""\n\n\ndef f():\n    """Two."""\n    return 1\n'})
    before = source_hash("toy.a")
    toy({"b": '"""Another."""\n# A comment.\ndef f():\n    """More."""\n    return (1)\n'})
    assert source_hash("toy.a") == before
    toy({"b": '"""One."""\n\n\ndef f():\n    """Two."""\n    return 2\n'})
    assert source_hash("toy.a") != before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import toy.b\n", True),
        ("from toy import b\n", True),
        ("def f():\n    from toy.b import x\n", True),
        ("import numpy\n", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toy.b\n", False),
        ("if __name__ == '__main__':\n    import toy.b\n", False),
        ("if True:\n    import toy.b\n", True),
        ("text = 'import toy.b'\n", False),
    ],
)
def test_imports_count_wherever_they_run(toy, text, found):
    toy({"a": text})
    assert ("toy.b" in sources("toy.a")) == found


def test_packages_run_with_their_modules_unless_they_are_lazy(toy):
    toy({"p/__init__": "from toy.c import x\n", "p/q": "x = 1\n", "a": "from toy.p.q import x\n"})
    assert {*sources("toy.a")} == {"toy", "toy.a", "toy.p", "toy.p.q", "toy.c"}
    toy(
        {
            "p/__init__": "_HOMES = {'x': 'q', 'y': 'r'}\n",
            "p/r": "y = 1\n",
            "a": "from toy.p import x\n",
        }
    )
    assert {*sources("toy.a")} == {"toy", "toy.a", "toy.p.q"}


TABLE = """
from __future__ import annotations
from toy.b import B
from toy.c import C
from toy.d import D
OF_C = {"c": 1}

class Row:
    kind: D

TABLE: dict[str, Row] = {"b": Row(B), "c": Row(C, OF_C), "d": Row(D)}
"""


def test_only_the_rows_that_are_used_count(toy):
    toy({"a": "from toy.table import TABLE\nprint(TABLE[row])\n", "table": TABLE, "d": "D = 1\n"})
    everything = {"toy", "toy.a", "toy.table", "toy.b", "toy.c", "toy.d"}
    assert {*sources("toy.a")} == everything
    assert {*sources("toy.a", {"b"})} == everything - {"toy.c", "toy.d"}
    before = {row: source_hash("toy.a", frozenset({row})) for row in "bcd"}
    assert len({*before.values()}) == 3
    toy({"table": TABLE.replace('"d": Row(D)', '"d": Row(D), "e": Row(D, 5)')})
    assert {row: source_hash("toy.a", frozenset({row})) for row in "bcd"} == before
    toy({"table": TABLE.replace('{"c": 1}', '{"c": 2}')})
    after = {row: source_hash("toy.a", frozenset({row})) for row in "bcd"}
    assert [row for row in "bcd" if after[row] != before[row]] == ["c"]


def test_a_row_below_the_table_counts_like_one_in_it(toy):
    below = TABLE.replace(', "d": Row(D)}', '}\nTABLE["d"] = Row(D)')
    toy({"a": "from toy.table import TABLE\nprint(TABLE[row])\n", "table": below, "d": "D = 1\n"})
    assert {*sources("toy.a", {"b"})} == {"toy", "toy.a", "toy.table", "toy.b"}
    before = {row: source_hash("toy.a", frozenset({row})) for row in "bcd"}
    toy({"d": "D = 2\n"})
    after = {row: source_hash("toy.a", frozenset({row})) for row in "bcd"}
    assert [row for row in "bcd" if after[row] != before[row]] == ["d"]
    toy({"table": below.replace('TABLE["d"] = Row(D)', 'TABLE["d"] = Row(D, 5)')})
    assert source_hash("toy.a", frozenset({"d"})) != after["d"]
    assert source_hash("toy.a", frozenset({"b"})) == before["b"]


@pytest.mark.parametrize(
    "statement",
    ["TABLE[NAME] = Row(D)", "TABLE['b'] = TABLE['d'] = Row(D)", "TABLE |= {'d': Row(D)}",
     "TABLE.update(d=Row(D))", "Row.kind = D", "e, f = D, 1", "TABLE['b'].kind = D",
     "TABLE['b'][0] = D", "OF_C['c'] = D"],
)  # fmt: skip
def test_a_statement_that_may_change_any_row_counts_for_all(toy, statement):
    text = TABLE.replace(', "d": Row(D)}', f'}}\nNAME = "d"\n{statement}')
    toy({"a": "from toy.table import TABLE\nprint(TABLE[row])\n", "table": text, "d": "D = 1\n"})
    before = {row: source_hash("toy.a", frozenset({row})) for row in "bc"}
    toy({"d": "D = 2\n"})
    assert all(source_hash("toy.a", frozenset({row})) != before[row] for row in "bc")


def test_rows_that_code_names_count(toy):
    toy({"a": "from toy.table import TABLE\nprint(TABLE['d'])\n", "table": TABLE, "d": "D = 1\n"})
    assert {*sources("toy.a", ())} == {"toy", "toy.a", "toy.table", "toy.d"}


def test_a_file_that_a_module_names_counts(toy, tmp_path):
    (tmp_path / "toy/style.css").write_text("red")
    toy({"a": "path = folder / 'style.css'\n"})
    before = source_hash("toy.a")
    (tmp_path / "toy/style.css").write_text("blue")
    code.forget()
    assert source_hash("toy.a") != before

"""Which source code a result depends on.

A program depends on its own module and on every module of the project that it imports, directly or
not, wherever the import stands. Imports are read from the files, never run. What counts of a module
is what it does: comments, docstrings and layout do not. Further:

- A package's `__init__` is run with any module in it, so it counts, unless it is lazy: a table
  `_HOMES` of names to modules. Who imports a name of that depends on its module alone.
- Of a table in ROWS only those rows count that the program is given, and what they refer to: a line
  more, or another method's predictor, is no change to a job that does not use it. A row may stand
  below the table, as `TABLE["row"] = ...`; any other statement that changes it counts for all.
- Imports for type checkers do not count, nor those under `if __name__ == "__main__"`, which say how
  a program is started and recorded, not what it computes.
- A file beside a module counts if the module names it, such as a style sheet.
"""

import ast
import hashlib
import re
from collections.abc import Collection, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# The folders of the packages that programs may import from.
PACKAGES = {
    name: Path(next(iter(find_spec(name).submodule_search_locations)))
    for name in ("eigencache", "reproduction")
}
# The tables of which a program uses some rows, as MODULE.NAME.
ROWS = ("eigencache.methods.METHODS", "eigencache.metrics.METRICS")


@cache
def source_hash(module: str, rows: frozenset[str] | None = None) -> str:
    """Return a hash of the code that a program runs.

    Snakemake does not see edits in an imported package; as a parameter of a rule this hash makes
    it re-run exactly the jobs whose code changed.

    Args:
        module: a program, such as "reproduction.stages.plan".
        rows: which rows of the tables in ROWS it uses; None is all.

    Raises:
        ModuleNotFoundError: the project has no such module.
    """
    digest = hashlib.sha256()
    for name, contents in sorted(sources(module, rows).items()):
        digest.update(f"{name} {len(contents)}\n".encode() + contents)
    return digest.hexdigest()[:16]


def sources(module: str, rows: Collection[str] | None = None) -> dict[str, bytes]:
    """Return what a program depends on: the names of modules and files, and what counts of each.

    Args:
        module: a program, such as "reproduction.stages.plan".
        rows: which rows of the tables in ROWS it uses; None is all. Rows that the code itself
            names, as in `METHODS["TaylorSeer"]`, count too.

    Raises:
        ModuleNotFoundError: the project has no such module.
    """
    if _file(module) is None:
        raise ModuleNotFoundError(f"no module {module!r} in {sorted(PACKAGES)}")
    named: set[str] = set()
    while True:
        found: dict[str, Source] = {}
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name not in found:
                tabled = rows is not None and any(table.startswith(f"{name}.") for table in ROWS)
                found[name] = _source(name, frozenset({*rows, *named}) if tabled else None)
                waiting += found[name].imports
        more = {row for source in found.values() for row in source.rows}
        if more <= named:
            break
        named |= more
    files = {f"{name}/{path.name}": path for name, one in found.items() for path in one.beside}
    return {name: one.code for name, one in found.items()} | {
        name: path.read_bytes() for name, path in files.items()
    }


def module_of(file: Path) -> str:
    """Return the full name of the module that a file of the project is.

    Raises:
        ValueError: it is in none of the project's packages.
    """
    for name, folder in PACKAGES.items():
        if file.resolve().is_relative_to(folder.resolve()):
            inside = file.resolve().relative_to(folder.resolve()).with_suffix("")
            return ".".join((name, *inside.parts))
    raise ValueError(f"{file}: in none of {sorted(PACKAGES)}")


# ---- What counts of a module


class Source(NamedTuple):
    """A module as far as it counts.

    Attributes:
        code: its text.
        imports: the project's modules that its imports run.
        beside: the files beside it that it names.
        rows: the rows of the tables in ROWS that it names.
    """

    code: bytes
    imports: tuple[str, ...]
    beside: tuple[Path, ...]
    rows: frozenset[str]


@cache
def _source(module: str, rows: frozenset[str] | None) -> Source:
    """Return a module as far as it counts, with some rows of its table, or None for all."""
    tree = _counting(module, rows)
    nodes = [*ast.walk(tree)]
    return Source(
        ast.unparse(tree).encode(), tuple(_imported(nodes)), tuple(_beside(module, nodes)),
        frozenset(_named_rows(nodes)),
    )  # fmt: skip


def _counting(module: str, rows: frozenset[str] | None) -> ast.Module:
    """Return the part of a module that counts, as a syntax tree."""
    tree = _Counting().visit(ast.parse(_file(module).read_bytes()))
    if rows is not None:
        for table in ROWS:
            home, _, name = table.rpartition(".")
            if home == module:
                _drop_rows(tree, name, rows)
    return tree


class _Counting(ast.NodeTransformer):
    """Removes what does not count: docstrings, and imports that do not say what is computed."""

    def visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            body[0] = ast.Pass()
        # No expression has a docstring or an import in it, and most nodes are expressions.
        return node if isinstance(node, ast.expr) else super().visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = [ast.Pass()]
        if ast.unparse(node.test) == "__name__ == '__main__'":
            imports = (ast.Import, ast.ImportFrom)
            node.body = [s for s in node.body if not isinstance(s, imports)] or [ast.Pass()]
        return self.generic_visit(node)


def _drop_rows(tree: ast.Module, name: str, rows: frozenset[str]) -> None:
    """Drop the rows of a table that are not used, and imports and constants for those alone.

    A row stands in the table itself, or in a statement of its own, `TABLE["row"] = ...`.
    """
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign | ast.Assign)
        and isinstance(node.value, ast.Dict)
        and name in _bound(node)
    )
    pairs = [
        (key, value)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in rows
    ]
    others = [node for node in tree.body if _row_of(node, name) not in (None, *rows)]
    dropped = _loaded(table).union(*map(_loaded, others))
    table.keys, table.values = [key for key, _ in pairs], [value for _, value in pairs]
    tree.body = [node for node in tree.body if node not in others]
    while True:
        used = _loaded(tree)
        spare = {n for node in tree.body if _is_named(node) for n in _bound(node)} & dropped - used
        if not spare:
            return
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                node.names = [a for a in node.names if (a.asname or a.name) not in spare]
            elif _is_named(node) and _bound(node) <= spare:
                dropped |= _loaded(node)
                node.targets = []
        tree.body = [
            node
            for node in tree.body
            if getattr(node, "names", True) and getattr(node, "targets", True)
        ]


def _row_of(node: ast.stmt, table: str) -> object:
    """Return the row that a statement adds to a table, as in `TABLE["row"] = ...`; None if none."""
    match node:
        case ast.Assign([ast.Subscript(ast.Name(name), ast.Constant(row))]) if name == table:
            return row
    return None


def _is_named(node: ast.stmt) -> bool:
    """Whether a statement does nothing but give values to names; any other counts as it is."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) for target in node.targets)
    return isinstance(node, ast.ImportFrom)


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that an import or an assignment binds."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _loaded(tree: ast.AST) -> set[str]:
    """Return the names that are read when the code is run, which annotations are not."""
    lazy = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for node in getattr(tree, "body", ())
    )
    names, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        for field, value in ast.iter_fields(node):
            if not (lazy and field in ("annotation", "returns")):
                values = value if isinstance(value, list) else [value]
                waiting += [child for child in values if isinstance(child, ast.AST)]
    return names


def _named_rows(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the rows that code reads by their names, as in `METHODS["TaylorSeer"]`."""
    tables = {table.rpartition(".")[2] for table in ROWS}
    for node in nodes:
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in tables
            and isinstance(node.slice, ast.Constant)
        ):
            yield node.slice.value


def _beside(module: str, nodes: list[ast.AST]) -> Iterator[Path]:
    """Yield the files beside a module that it names, such as a style sheet."""
    path = _file(module)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
            if re.fullmatch(r"[a-z][\w-]*\.\w+", name) and name != path.name:
                file = path.parent / name
                if file.is_file():
                    yield file


# ---- What a module imports


def _imported(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the project's modules that are run by a module's imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _run_by(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield from _run_by(_home(node.module, alias.name))


def _home(module: str, name: str) -> str:
    """Return the module that `from module import name` takes the name from."""
    if _file(f"{module}.{name}"):
        return f"{module}.{name}"
    homes = _homes(module) or {}
    return f"{module}.{homes[name]}" if name in homes else module


def _run_by(module: str) -> Iterator[str]:
    """Yield a module and the packages that it lies in, as far as they run something."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if _file(name) and _homes(name) is None:
            yield name


@cache
def _homes(package: str) -> dict[str, str] | None:
    """Return the table of a lazy package: its names, and the modules that define them."""
    path = _file(package)
    if path is None or path.name != "__init__.py":
        return None
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and _bound(node) == {"_HOMES"}:
            return ast.literal_eval(node.value)
    return None


@cache
def _file(module: str) -> Path | None:
    """Return the file of a module of the project, or None if the name is no such module."""
    package, *parts = module.split(".")
    if package not in PACKAGES:
        return None
    stem = PACKAGES[package].joinpath(*parts)
    files = (stem / "__init__.py", stem.with_suffix(".py"))
    return next((path for path in files if path.is_file()), None)


def forget() -> None:
    """Read every file again at the next call, as after an edit in the same process."""
    for function in (source_hash, _source, _homes, _file):
        function.cache_clear()

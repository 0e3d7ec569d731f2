"""Which source code a result depends on."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent


@cache
def source_files(module: str) -> frozenset[Path]:
    """Return the files of this package that `module` imports, directly or not, and its own.

    Imports are read from the files, never run. What the package's own `__init__` offers does not
    count: it imports nothing before it is asked to.

    Args:
        module: its full name, such as "eigencache.stages.plan".

    Raises:
        ModuleNotFoundError: this package has no such module.
    """
    if _file(module) is None:
        raise ModuleNotFoundError(f"no module {module!r} in {ROOT.name}")
    found, waiting = set(), [_file(module)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += filter(None, map(_file, _imported_names(path)))
    return frozenset(found)


def source_hash(module: str, *data: str) -> str:
    """Return a hash of the code that `module` runs, and of data files beside it that it reads.

    Snakemake does not see edits in an imported package; as a parameter of a rule this hash makes
    it re-run exactly the jobs whose code changed.

    Args:
        module: a stage or figure, such as "eigencache.stages.plan".
        data: names of files in the module's folder, such as a style sheet.
    """
    files = sorted(source_files(module))
    digest = hashlib.sha256()
    for path in [*files, *(_file(module).parent / name for name in data)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    """Return the file of a module below this package, or None if the name is no such module."""
    package, *parts = module.split(".")
    if package != ROOT.name or not parts:
        return None
    stem = ROOT.joinpath(*parts)
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def _imported_names(path: Path) -> list[str]:
    """Return every full name that a file's import statements could mean a module by."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names

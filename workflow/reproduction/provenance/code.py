"""Which source code a result depends on, and what else a run can say about itself."""

import ast
import hashlib
import platform
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).parents[3]
# The folders of the packages that stages may import from.
PACKAGES = {
    name: Path(next(iter(find_spec(name).submodule_search_locations)))
    for name in ("eigencache", "reproduction")
}


@cache
def source_files(module: str) -> frozenset[Path]:
    """Return the project's files that `module` imports, directly or not, and its own.

    Imports are read from the files, never run. What the `__init__` of `eigencache` offers does not
    count: it imports nothing before it is asked to.

    Args:
        module: its full name, such as "reproduction.stages.plan".

    Raises:
        ModuleNotFoundError: the project has no such module.
    """
    found: set[Path] = set()
    waiting = [_file_of(module)]
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
        module: a stage or figure, such as "reproduction.stages.plan".
        data: names of files in the module's folder, such as a style sheet.
    """
    files = sorted(source_files(module))
    digest = hashlib.sha256()
    for path in [*files, *(_file_of(module).parent / name for name in data)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def package() -> dict[str, str | None]:
    """Return the version of `eigencache`, and the git `commit` of the project (None: not in git).

    A commit ends in "-dirty" if files that git follows differ from it.
    """
    return {"version": _project()["version"], "commit": _commit()}


def libraries() -> dict[str, str | None]:
    """Return the versions of Python and of what the workflow needs; None of what is missing."""
    project = _project()
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + extras["metrics"] + extras["workflow"]
    names = {re.match(r"[\w.-]+", line)[0] for line in listed} - {project["name"]}
    return {"python": platform.python_version()} | {name: _version(name) for name in sorted(names)}


def device() -> str:
    """Return the name of the GPU that this process has used, or else of the CPU."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = cpus.is_file() and re.search(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (PROJECT / ".git").exists():
        return None
    # Locks are optional, so that jobs side by side do not stop each other or the user's own git.
    command = "git --no-optional-locks describe --always --abbrev=40 --dirty --exclude *"
    try:
        done = subprocess.run(command.split(), cwd=PROJECT, capture_output=True, text=True)
    except OSError:
        return None  # no git here
    return done.stdout.strip() or None


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


def _file(module: str) -> Path | None:
    """Return the file of a module of the project, or None if the name is no such module."""
    package, *parts = module.split(".")
    if package not in PACKAGES or not parts:
        return None
    stem = PACKAGES[package].joinpath(*parts)
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def _file_of(module: str) -> Path:
    """Return the file of a module of the project, or raise a ModuleNotFoundError."""
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"no module {module!r} in {sorted(PACKAGES)}")
    return path


def _imported_names(path: Path) -> list[str]:
    """Return every full name that a file's import statements could mean a module by."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names

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
from pathlib import Path

ROOT = Path(__file__).parent
PROJECT = ROOT.parent / "pyproject.toml"  # where the package lies in its repository


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
        module: a stage or figure, such as "eigencache.stages.plan".
        data: names of files in the module's folder, such as a style sheet.
    """
    files = sorted(source_files(module))
    digest = hashlib.sha256()
    for path in [*files, *(_file_of(module).parent / name for name in data)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def package() -> dict[str, str | None]:
    """Return the package's `version`, and the git `commit` that it is of (None: not from git).

    A commit ends in "-dirty" if files that git follows differ from it.
    """
    version = _project()["version"] if PROJECT.is_file() else metadata.version(ROOT.name)
    return {"version": version, "commit": _commit()}


def libraries() -> dict[str, str | None]:
    """Return the versions of Python and of what the package depends on; None of what is missing."""
    listed = _project()["dependencies"] if PROJECT.is_file() else metadata.requires(ROOT.name)
    names = sorted(
        name
        for line in listed or ()
        if "extra ==" not in line
        for name in re.findall(r"^[\w.-]+", line)
    )
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def device() -> str:
    """Return the name of the GPU that this process has used, or else of the CPU."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = cpus.is_file() and re.search(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _project() -> dict:
    return tomllib.loads(PROJECT.read_text())["project"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    if not (ROOT.parent / ".git").exists():
        return None
    # Locks are optional, so that jobs side by side do not stop each other or the user's own git.
    command = "git --no-optional-locks describe --always --abbrev=40 --dirty --exclude *"
    try:
        done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None  # no git here
    return done.stdout.strip() or None


def _file(module: str) -> Path | None:
    """Return the file of a module below this package, or None if the name is no such module."""
    package, *parts = module.split(".")
    if package != ROOT.name or not parts:
        return None
    stem = ROOT.joinpath(*parts)
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def _file_of(module: str) -> Path:
    """Return the file of a module of this package, or raise a ModuleNotFoundError."""
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"no module {module!r} in {ROOT.name}")
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

"""Facts about a run: versions, the commit, the device."""

import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[3]


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
    # Without optional locks, parallel jobs do not block each other or the user's own git.
    command = "git --no-optional-locks describe --always --abbrev=40 --dirty --exclude *"
    try:
        done = subprocess.run(command.split(), cwd=PROJECT, capture_output=True, text=True)
    except OSError:
        return None  # no git here
    return done.stdout.strip() or None

"""The package is typed: mypy finds no fault, and says so to those who import it."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import eigencache

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
def test_mypy_finds_nothing():
    """Its cache makes a second run take seconds; the first takes half a minute."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_marker_is_packaged():
    assert (Path(eigencache.__file__).parent / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["eigencache"]


@pytest.mark.slow
def test_types_reach_those_who_import_the_package(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "import eigencache\n"
        "plan = eigencache.load_plan('x')\n"
        "reveal_type(plan)\n"
        "reveal_type(eigencache.calibrate)\n"
        "eigencache.load_plan(1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, str(tmp_path / "user.py")], cwd=ROOT, capture_output=True, text=True
    )
    assert 'Revealed type is "eigencache.plan.Plan"' in done.stdout
    assert "full_steps: int | None" in done.stdout
    assert 'Argument 1 to "load_plan" has incompatible type "int"' in done.stdout

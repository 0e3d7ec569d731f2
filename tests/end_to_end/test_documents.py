"""The documents: every command in them is run or at least asked what it would do, every path is."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from helpers import copy_of_project, pythonpath, snakemake

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "profiles/README.md", "benchmarks/peers/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()
PROGRAM = "PYTHONPATH=workflow python "
# What these commands do is seen elsewhere: they install, or take longer than a test may.
ELSEWHERE = {
    "pip install": ".ci/run",
    "pytest": ".ci/run",
    "tests/slurm/run": ".ci/run",
    "python3 -m venv": ".ci/run",
    "source": ".ci/run",
    "apt-get install": ".ci/run",
    "export HF_TOKEN": "tests/workflow/test_hub.py",
    "EIGENCACHE_SCALE=1 pytest": "tests/workflow/test_scale.py",
    "benchmarks/peers/run": "tests/end_to_end/test_peers.py",
    "JOBS=1 benchmarks/peers/run": "tests/end_to_end/test_peers.py",
    "build/peers/cache-dit/bin/python": "tests/end_to_end/test_peers.py",
    "cd results/train/bundle": "tests/training/test_shipping.py",
    "OUT=results FLOW": "tests/training/test_shipping.py",
    "snakemake --report": "tests/end_to_end/test_workflow.py",
}


def commands() -> list[str]:
    """Return every command of every shell block, each once, without comments."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                parts = re.sub(r"\s#.*$", "", line).split("&&")
                found += [" ".join(part.split()) for part in parts if part.strip()]
    return list(dict.fromkeys(found))


def starting(*heads: str) -> list[str]:
    return [c for c in commands() if c.startswith(heads) and not c.startswith(tuple(ELSEWHERE))]


def test_commands_are_found():
    assert len(commands()) > 30
    assert "snakemake --cores all --resources gpu=2" in commands()


@pytest.mark.parametrize("command", commands())
def test_every_command_is_run_somewhere(command):
    here = ("snakemake", "eigencache", "python ", PROGRAM, "head ")
    assert command.startswith((*here, *ELSEWHERE)), "add it to ELSEWHERE, with what runs it"


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_what_runs_the_others_is_there(place):
    assert (ROOT / place).is_file()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("documents"))


@pytest.mark.parametrize("command", starting("snakemake"))
def test_snakemake_knows_what_it_would_do(project, command):
    if "slurm" in command and not find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("snakemake-executor-plugin-slurm is not installed")
    printed = snakemake(project, *shlex.split(command)[1:], "-n")
    assert "Job stats:" in printed


@pytest.mark.parametrize("command", starting("python ", PROGRAM))
def test_programs_have_the_options_that_are_stated(command):
    words = shlex.split(command.removeprefix("PYTHONPATH=workflow "))[1:]
    if words[0] == "-c":
        return  # the check for a GPU, which is right on any machine
    program = words[:2] if words[0] == "-m" else words[:1]
    asked = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": pythonpath()},
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert [w for w in words if w.startswith("--") and w not in asked.stdout] == []


def test_the_readmes_commands_make_and_score_images(project):
    """As they stand, one after the other; `eigencache` may not be on the PATH of a test."""
    block = next(b for b in re.findall(r"```sh\n(.*?)```", README, re.S) if "calibrate" in b)
    called = f'eigencache() {{ "{sys.executable}" -m eigencache.cli "$@"; }}\nset -e\n{block}'
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", called], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = pd.read_csv(project / "scores.csv")
    assert len(scores) == 4 and (scores["psnr"] > 30).all()


def test_the_readmes_python_prints_what_was_saved(project):
    code = re.search(r"```python\n(import eigencache.*?)```", README, re.S)[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "9 steps in full, 41 skipped" in done.stdout


WORKED = """
METHODS = dict(METHODS)
METHODS["Damped"] = Method(Interval, Damped, "output", "here")
timesteps, line = np.linspace(1000, 20, 50), np.arange(50.0)
plan = METHODS["Damped"].plan(9, timesteps, damping=1.0)
np.testing.assert_allclose((plan.weights @ line)[~plan.full], line[~plan.full])
tried = make_plan(Interval(full_steps=9), Damped(1.0), timesteps)
np.testing.assert_array_equal(tried.weights, plan.weights)
"""


@pytest.mark.parametrize("document", ["README.md", "docs/extending.md"])
def test_the_worked_method_is_a_method_and_forecasts_a_line(document):
    code = re.search(r"```python\n(from dataclasses.*?)```", (ROOT / document).read_text(), re.S)[1]
    assert len(code.splitlines()) < 30
    imports = (
        "from eigencache.methods import METHODS, Method, make_plan\n"
        "from eigencache.schedules import Interval\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", imports + code + WORKED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link
    tops = "|".join(path.name for path in ROOT.iterdir() if not path.name.startswith("."))
    for path in re.findall(rf"`((?:{tops})/[\w./-]+)`", text):
        made = path.startswith(("results/", "figures/", "models/", "build/", "data/benchmarks/gpu"))
        assert made or (ROOT / path).exists(), path


def test_environments_of_the_documents_are_those_that_exist():
    named = set(re.findall(r"`(envs/[\w.]+)`", (ROOT / "docs/setup.md").read_text()))
    assert named == {f"envs/{path.name}" for path in (ROOT / "envs").iterdir()}

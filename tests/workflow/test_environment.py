"""The pinned environments agree with each other and with what the package asks for."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# The package itself; pip, which comes with the environment; what only a cluster has.
UNPINNED = {"eigencache", "pip", "snakemake-executor-plugin-slurm"}


def constraints():
    lines = (ROOT / "envs/workflow.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    return [r for lines in wanted for r in map(Requirement, lines) if r.name not in UNPINNED]


def test_everything_asked_for_is_pinned_within_its_bounds():
    pins = constraints()
    for requirement in requirements():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_conda_file_has_the_same_pins():
    listed = yaml.safe_load((ROOT / "envs/workflow.yaml").read_text())["dependencies"]
    conda = dict(line.split("==") for line in listed[-1]["pip"])
    pins = constraints()
    assert conda == {name: pins[canonicalize_name(name)] for name in conda}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = extras["dependencies"] + extras["optional-dependencies"]["workflow"]
    names = {Requirement(line).name for line in wanted} - UNPINNED
    assert {canonicalize_name(name) for name in names} <= conda.keys()


def test_no_address_is_pinned():
    for path in (ROOT / "envs").iterdir():
        assert not re.search(r"https?://|@ |file:", path.read_text()), path


def test_the_lines_of_ci_are_those_of_the_documents():
    documents = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    comments = re.findall(r"\brun '([^']+)'", (ROOT / ".ci/run").read_text())
    assert len(comments) >= 9
    for comment in comments:
        assert len(re.findall(rf"^\S.*# {comment}$", documents, re.MULTILINE)) == 1, comment


def test_the_jobs_of_ci_are_its_parts():
    parts = re.search(r'^parts="(.+)"$', (ROOT / ".ci/run").read_text(), re.MULTILINE)[1].split()
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert sorted(parts) == sorted([*jobs["part"]["strategy"]["matrix"]["part"], "slurm"])


def test_the_version_is_stated_once_and_cited():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version

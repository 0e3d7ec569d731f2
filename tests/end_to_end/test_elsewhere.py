"""The workflow in a folder of its own, and as a module of another workflow."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import copy_of_project, planned_jobs, snakemake

pytestmark = pytest.mark.slow

OUTER = """
from pathlib import Path

configfile: "study.yaml"


module eigencache:
    snakefile:
        "HOME/Snakefile"
    config:
        config["eigencache"]


use rule * from eigencache as eigencache_*


rule count:
    default_target: True
    input:
        records="results/small/records/fewer-steps.csv",
        own="data/own.txt",
    output:
        "counted.txt",
    shell:
        "echo ${{HF_HUB_OFFLINE:-online}} $(wc -l < {input.records}) > {output}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A clone of the project."""
    return copy_of_project(tmp_path_factory.mktemp("home"))


def small(home: Path) -> dict:
    """Return a configuration whose full and shorter runs are sampled within seconds."""
    config = yaml.safe_load((home / "config.yaml").read_text())
    config |= {"experiment": "small", "num_prompts": 2, "budgets": [2], "shards": 1}
    config |= {"methods": {"fewer-steps": {"method": "fewer-steps"}}, "metrics": ["psnr"]}
    config["arguments"]["num_inference_steps"] = 3
    config["calibration"]["num_prompts"] = 2
    return config | {"figures": {}}


def test_another_folder_has_results_of_its_own(home, tmp_path):
    printed = snakemake(tmp_path, "-n", "-s", str(home / "Snakefile"), "--directory", ".")
    assert planned_jobs(printed) == planned_jobs(snakemake(home, "-n"))
    assert (tmp_path / "data").samefile(home / "data")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small(home)))
    wanted = "results/small/records/full.csv"
    arguments = ["-s", str(home / "Snakefile"), "--directory", str(tmp_path)]
    snakemake(home, wanted, "--cores", "1", *arguments)
    assert len(pd.read_csv(tmp_path / wanted)) == 2
    assert len(list(tmp_path.glob("results/small/images/full/000/*/*.png"))) == 4
    assert not (home / "results/small").exists() and not (home / "logs").exists()


def test_a_module_of_another_workflow(home, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # as tests that must not download set it
    (tmp_path / "data").mkdir()
    (tmp_path / "data/own.txt").write_text("of the study\n")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"eigencache": small(home)}))
    (tmp_path / "Snakefile").write_text(OUTER.replace("HOME", str(home)))
    jobs = planned_jobs(snakemake(tmp_path, "-n"))
    assert jobs == {
        "count": 1, "eigencache_merge": 1, "eigencache_sample": 1, "eigencache_fetch": 1,
    }  # fmt: skip
    everything = planned_jobs(snakemake(tmp_path, "-n", "eigencache_all"))
    assert everything["eigencache_figure_pareto"] == everything["eigencache_gallery"] == 1
    snakemake(tmp_path, "--cores", "1")
    # Its own jobs may go online, and what it keeps in data/ is its own.
    assert (tmp_path / "counted.txt").read_text().split() == ["online", "3"]
    assert not (tmp_path / "data").is_symlink() and (tmp_path / "data/prompts").is_symlink()

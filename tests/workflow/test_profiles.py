"""The Slurm profile agrees with the workflow's rules. tests/slurm/run runs it on a real Slurm."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
GPU_RULES = {"calibrate", "collect", "costs", "errors", "refine", "refine_for_quality", "sample",
             "score"}  # fmt: skip


def snakemake(*arguments) -> str:
    """Run snakemake in the project; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What a dry run says of the resources of each rule, with every rule that can hold a GPU."""
    folder = tmp_path_factory.mktemp("profile")
    # What only the executor understands is left out: it is no dependency of the tests.
    kept = {k: v for k, v in PROFILE.items() if k != "executor" and not k.startswith("slurm-")}
    (folder / "profile.yaml").write_text(yaml.safe_dump(kept))
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config |= {"experiment": "of-test-profiles", "figures": {}}
    config["methods"] = {
        "design": {"method": "EigenCache-design"},
        "refined": {"method": "EigenCache"},
        "bounded": {"method": "EigenCache", "psnr": 40},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    printed = snakemake(
        "all", "results/of-test-profiles/collected/output.safetensors", "-n", "--nolock",
        "--workflow-profile", folder, "--configfile", folder / "config.yaml",
    )  # fmt: skip
    rules = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", printed, re.MULTILINE)
    return {
        rule: dict(re.findall(r"(\w+)=([^,\n]+)", body.split("resources: ")[-1]))
        for rule, body in rules
    }


def test_profile_names_rules_that_exist():
    rules = set(snakemake("--list-rules").split())
    assert set(PROFILE["set-resources"]) <= rules


def test_every_job_with_a_gpu_has_partition_memory_and_time(jobs):
    gpu = {rule: job for rule, job in jobs.items() if job.get("gpu", "0") != "0"}
    assert set(gpu) == GPU_RULES
    for rule, job in gpu.items():
        assert job["slurm_partition"] == "gpu", rule
        assert int(job["mem_mb"]) >= 16000 and int(job["runtime"]) >= 120, rule


def test_jobs_without_a_gpu_do_not_wait_for_one(jobs):
    others = {rule: job for rule, job in jobs.items() if rule not in GPU_RULES}
    assert "plan" in others
    for rule, job in others.items():
        assert job["slurm_partition"] == "cpu", rule
        assert int(job["mem_mb"]) >= 4000 and int(job["runtime"]) >= 60, rule


def test_threads_stay_those_of_the_experiment():
    # Another number changes the last bits of an image, so a profile may not set them.
    assert "set-threads" not in PROFILE
    assert not any("threads" in resources for resources in PROFILE["set-resources"].values())


def test_jobs_are_neither_grouped_nor_arrays():
    # Groups leave devices idle, arrays under a limit on gpu never start: profiles/README.md.
    assert not {"groups", "group-components", "slurm-array-jobs"} & set(PROFILE)

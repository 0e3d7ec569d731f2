"""The Slurm profile agrees with the workflow's rules. tests/slurm/run runs it on a real Slurm."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import copy_of_project, snakemake

from reproduction.models.requests import memory_mb, minutes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROFILE = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
GPU_RULES = {"calibrate", "collect", "costs", "errors", "refine", "refine_for_quality", "sample",
             "score"}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with its model, and a configuration of every rule that holds a GPU."""
    folder = copy_of_project(tmp_path_factory.mktemp("profile"))
    # What only the executor understands is left out: it is no dependency of the tests.
    kept = {k: v for k, v in PROFILE.items() if k != "executor" and not k.startswith("slurm-")}
    (folder / "kept").mkdir()
    (folder / "kept/profile.yaml").write_text(yaml.safe_dump(kept))
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"figures": {}}
    config["metrics"] = ["psnr", "clip_score"]
    config["methods"] = {
        "design": {"method": "EigenCache-design"},
        "refined": {"method": "EigenCache"},
        "bounded": {"method": "EigenCache", "psnr": 40},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for model in ("emoji-flux", "emoji-clip"):
        snakemake(folder, f"models/{model}/manifest.json", "--cores", "1")
    return folder


def resources(folder: Path, *options: str) -> dict[str, dict[str, str]]:
    """Return what a dry run says of the resources of each rule."""
    printed = snakemake(
        folder, "all", "results/emoji-flux/collected/output.safetensors", "-n",
        "--workflow-profile", "kept", *options,
    )  # fmt: skip
    rules = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", printed, re.MULTILINE)
    return {
        rule: dict(re.findall(r"(\w+)=([^,\n]+)", body.split("resources: ")[-1]))
        for rule, body in rules
    }


@pytest.fixture(scope="module")
def jobs(project):
    return resources(project)


def test_profile_names_rules_that_exist(project):
    rules = set(snakemake(project, "--list-rules").split())
    assert set(PROFILE["set-resources"]) <= rules


def test_every_job_with_a_gpu_has_partition_memory_and_time(jobs):
    gpu = {rule: job for rule, job in jobs.items() if job.get("gpu", "0") != "0"}
    assert set(gpu) == GPU_RULES
    for rule, job in gpu.items():
        assert job["slurm_partition"] == "gpu", rule
        assert 8000 < int(job["mem_mb"]) < 8100 and int(job["runtime"]) > 30, rule
    assert int(gpu["refine"]["runtime"]) > int(gpu["calibrate"]["runtime"])


def weights(path: Path, parameters: int, dtype: str = "BF16", size: int = 2) -> int:
    """Write the header of weights that need so much room, and nothing of them."""
    tensor = {"dtype": dtype, "shape": [parameters], "data_offsets": [0, size * parameters]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return size * parameters


def test_memory_and_time_follow_the_model(project, jobs, tmp_path):
    folder = shutil.copytree(project, tmp_path / "project")
    manifest = folder / "models/emoji-flux/manifest.json"
    facts = json.loads(manifest.read_text())
    name = "transformer/diffusion_pytorch_model.safetensors"
    facts[name]["bytes"] = weights(folder / "models/emoji-flux" / name, 12_000_000_000)
    manifest.write_text(json.dumps(facts))
    in_half = resources(folder, "--config", "dtype=bfloat16", "step_seconds=2")
    for rule in GPU_RULES - {"score"}:
        assert 32_000 < int(in_half[rule]["mem_mb"]) < 32_100, rule  # 24 GB and 8 GB
        assert int(in_half[rule]["runtime"]) >= int(jobs[rule]["runtime"]) + 8, rule
    assert int(in_half["score"]["mem_mb"]) < 8100  # it loads other models
    whole = resources(folder)  # in float32
    assert 56_000 < int(whole["sample"]["mem_mb"]) < 56_100


def test_what_is_loaded_in_another_dtype_needs_its_room(tmp_path):
    manifest = tmp_path / "manifest.json"
    sizes = {"a.safetensors": weights(tmp_path / "a.safetensors", 10**9, "F32", 4)}
    sizes["b.safetensors"] = weights(tmp_path / "b.safetensors", 10**9, "I64", 8)
    sizes["c.bin"] = 10**9
    manifest.write_text(json.dumps({name: {"bytes": size} for name, size in sizes.items()}))
    assert memory_mb([str(manifest)], "bfloat16") == 8000 + 2000 + 8000 + 1000
    assert minutes([str(manifest)], 600, 2) == 30 + 2 * 20 + 5  # 13 GB at 100 MB a second
    with pytest.raises(FileNotFoundError):
        memory_mb([str(tmp_path / "none/manifest.json")], "bfloat16")


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

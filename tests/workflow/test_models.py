"""The configuration of every model that the workflow knows, on a tiny stand-in of the model."""

import argparse
import contextlib
import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import ROOT, copy_of_project, planned_jobs, snakemake
from PIL import Image

from benchmarks import models
from eigencache._frames import frames_of
from reproduction.config import load
from reproduction.models import pipeline

_TINY = {"height": 32, "width": 32}
# What a stand-in is called with in place of the configuration's values; the rest stays.
CHANGES = {
    "flux-dev": _TINY,
    "flux-schnell": _TINY,
    "flux-kontext": _TINY | {"max_area": 32 * 32, "_auto_resize": False},
    "flux2-dev": _TINY,
    "flux2-klein-4b": _TINY,
    "qwen-image": _TINY,
    "qwen-image-edit": {},
    "z-image": _TINY,
    "sd35-large": _TINY,
    "sdxl": _TINY,
    "wan22-ti2v-5b": _TINY | {"num_frames": 5},
    "wan22-t2v-a14b": _TINY | {"num_frames": 5},
}
KEPT = ("flux-schnell", "flux2-klein-4b")  # few steps as it is
# One that makes videos goes on to every figure, one with true CFG and a U-Net to those for which
# the model runs once more.
ANEW = ("errors", "costs")
DRAWN = {"wan22-ti2v-5b": (), "qwen-image": ANEW, "sdxl": ANEW}


def stated(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text())


def small(name: str, model_path: Path, methods: int = 2) -> dict:
    """Return a configuration of a few prompts and steps, with the first method that is planned."""
    config = stated(name)
    steps = 4 if name in KEPT else 6
    labels = [key for key, spec in config["methods"].items() if spec["method"] != "fewer-steps"]
    chosen = [labels[0], "EigenCache-design"][:methods]
    return config | {
        "model_path": str(model_path),
        "metrics": ["psnr", "ssim"],
        "num_prompts": 2,
        "shards": 1,
        "timed_prompts": 1,
        "threads": 1,
        "dtype": "float32",
        "budgets": [3],
        "arguments": config["arguments"] | CHANGES[name] | {"num_inference_steps": steps},
        "calibration": config["calibration"] | {"num_prompts": 2},
        "methods": {label: config["methods"][label] for label in chosen},
        "figures": {},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project whose prompts name tiny images."""
    folder = copy_of_project(tmp_path_factory.mktemp("models"))
    for path in (folder / "data/prompts/images").iterdir():
        with Image.open(path) as image:
            image.resize((32, 32)).save(path)
    return folder


@contextlib.contextmanager
def _within(folder: Path, argv: list[str]):
    before = os.getcwd(), sys.argv
    os.chdir(folder)
    sys.argv = argv
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.argv = before[1]


def run_here(folder: Path, targets: Sequence[str], configfile: Path) -> str:
    """Run the jobs of targets one after another in this process; return what a dry run prints.

    Snakemake says which commands make the targets. Starting each of them in a process of its own
    would take ten times as long, since each would import torch and diffusers anew.
    """
    printed = snakemake(folder, *targets, "-n", "-p", "--configfile", str(configfile))
    jobs = re.findall(
        r"rule \w+:\n    input: (.*)\n    output: (.*)\n(?:    .*\n)+Shell command: .*?"
        r"python -m (reproduction\.(?:stages|figures|gallery)\.\S+) (.*?)(?: > \S+)? 2>&1",
        printed,
    )
    assert len(jobs) == planned_jobs(printed).total() - 1, (
        printed
    )  # but for the first target itself
    makers = {path.split()[0]: i for i, job in enumerate(jobs) for path in job[1].split(", ")}
    needed = {
        i: {makers[path] for path in job[0].split(", ") if path in makers}
        for i, job in enumerate(jobs)
    }
    for i in TopologicalSorter(needed).static_order():
        *_, module, arguments = jobs[i]
        with _within(folder, [module, *shlex.split(arguments)]):
            runpy.run_module(module, run_name="__main__")
    return printed


def test_the_seconds_of_a_step_are_those_that_were_estimated():
    table = pd.read_csv("data/benchmarks/models.csv").set_index("configuration")
    assert set(table.index) == set(CHANGES)
    for name, row in table.iterrows():
        text = (ROOT / f"workflow/config/{name}.yaml").read_text()
        assert stated(name)["step_seconds"] == row["estimated_h100_seconds"]
        assert f"# Estimated: {row['tflop_per_step']} TFLOP " in text


@pytest.mark.slow
def test_operations_are_counted_anew_as_they_are_stated():
    table = pd.read_csv("data/benchmarks/models.csv").set_index("configuration")
    parameters, operations = models.STEPS["sdxl"].counted()
    assert parameters == table.loc["sdxl", "parameters"]
    assert round(operations / 1e12, 1) == table.loc["sdxl", "tflop_per_step"]


def test_every_configuration_has_a_stand_in():
    files = {path.stem for path in ROOT.glob("workflow/config/*.yaml")}
    assert files - {"ablation", "methods"} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_names_files_and_a_model_that_there_are(name):
    config = load(stated(name))
    table = pd.read_csv("data/models.tsv", sep="\t")
    for model in (config.model, config.clip):
        assert table.loc[table["model"] == model, "source"].str.contains(r"@[0-9a-f]{40}$").all()
        assert (table["model"] == model).any()
    assert not set(config.evaluation_prompts) & set(config.calibration_prompts)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_runs_on_a_stand_in(project, name, tmp_path):
    from pipelines.stand_ins import save

    dry = planned_jobs(snakemake(project, "-n", "--configfile", f"workflow/config/{name}.yaml"))
    assert dry["sample"] >= 3 and dry["fetch"] >= 2 and dry["figure_pareto"] == 1
    config = small(name, tmp_path / "model")
    save(config["model"], tmp_path / "model")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    files = [f"figures/{config['experiment']}/{figure}.pdf" for figure in DRAWN.get(name, ())]
    target = "figures" if name in DRAWN and not files else "tables"
    dry = run_here(project, [target, *files], tmp_path / "small.yaml")
    drawn = re.findall(r"figures/\S+\.p(?:df|ng)", dry)
    assert bool(drawn) == (name in DRAWN)
    assert all((project / path).stat().st_size > 5000 for path in drawn)
    results = project / "results" / config["experiment"]
    summary = pd.read_csv(results / "summary.csv").set_index("method")
    assert list(summary.index) == ["full", *config["methods"]]
    assert (summary["images"] == 2).all() and (summary.loc["full", "psnr"] == float("inf"))
    cached = summary.drop("full")
    assert (cached["psnr"] > 1).all() and (cached["full_steps"] < cached["num_steps"]).all()
    # Each is finite, those of wan22-ti2v-5b too, whose first frame is the image that was given.
    scores = pd.read_csv(results / "scores.csv")
    each = scores.loc[scores["method"] != "full", "psnr"]
    assert (
        len(each) == 2 * len(config["methods"]) and each.between(1, 200, inclusive="neither").all()
    )
    records = pd.read_csv(results / "records/full.csv")
    frames = config["arguments"].get("num_frames", 1)
    assert [len(frames_of(project / path)) for path in records["image"]] == [frames] * 2
    assert (records["tflop"] > 0).all()
    if "edits" in config["prompts"]:
        check_that_images_count(project, config, tmp_path / "small.yaml")


def check_that_images_count(project: Path, config: dict, configfile: Path) -> None:
    """Edit an image that a prompt names: what was made from it is made again, and nothing else."""

    def jobs():
        return planned_jobs(snakemake(project, "tables", "-n", "--configfile", str(configfile)))

    about = json.loads(
        (project / f"results/{config['experiment']}/shards/full/000.csv.json").read_text()
    )
    images = project / "data/prompts/images"
    assert "data/prompts/images/cat.jpg" in about["sources"] and not jobs()
    before = (images / "cat.jpg").stat()
    (images / "cat.jpg").touch()
    found = jobs()
    assert found["sample"] >= 2 and found["score"] >= 2
    assert "calibrate" not in found and "plan" not in found
    os.utime(images / "cat.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    (images / "rocket.jpg").touch()
    assert jobs()["calibrate"] == 1


def test_a_text_for_a_number_is_refused_before_anything_is_loaded(tiny_model):
    arguments = argparse.Namespace(
        model=tiny_model / "no-manifest.json", pipeline=None, threads=1, low_memory=0,
        dtype="float32", arguments={"num_inference_steps": 2, "guidance_scale": "five"},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"guidance_scale: 'five' is no number.* default 3\.5"):
        pipeline.loaded(arguments, [])
    arguments.arguments["guidance_scale"] = 5
    with pytest.raises(ValueError, match="max_sequence_length: 'few' is no number"):
        pipeline.loaded(arguments, [{"prompt": "a", "max_sequence_length": "few"}])
    with pytest.raises(FileNotFoundError, match="no-manifest"):  # as far as loading
        pipeline.loaded(arguments, [{"prompt": "7", "negative_prompt": "b"}])

"""The workflow, run as a user runs it: on a copy of the project, through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import warm
import yaml
from helpers import SECRET, copy_of_project, planned_jobs, program, snakemake

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DRAWN = ("pareto", "budget", "metrics", "strip", "samples", "plans", "schedules", "kernel",
         "errors", "costs")  # fmt: skip
FIGURES = [f"{name}.{kind}" for name in DRAWN for kind in ("pdf", "png")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a very small experiment."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"num_prompts": 3, "budgets": [3, 4], "shards": 1, "timed_prompts": 1}
    config["references"] = ["full", "fewer-steps-04"]
    config["arguments"] |= {"num_inference_steps": 8, "height": 64, "width": 64}
    config["calibration"]["num_prompts"] = 3
    config["methods"] = {
        "fewer-steps": {"method": "fewer-steps"},
        "EigenCache": {"method": "EigenCache", "held_out": 1},
        "EigenCache-20dB": {"method": "EigenCache", "held_out": 1, "psnr": 20},
    }
    config["figures"] = {"samples": {"budget": 3, "prompts": [0, 2]}, "plans": {"budget": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def finished(project):
    """The small experiment, killed at its first sampled image, and run to its end."""
    running = subprocess.Popen(
        [warm.python(), "-m", "snakemake", "--cores", "2"], cwd=project, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(project)},
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(project.glob("results/*/images/*/*/*/*.png")):
        assert running.poll() is None and time.monotonic() < deadline, "it sampled nothing"
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not list(project.glob("results/*/summary.csv"))
    snakemake(project, "--unlock")
    snakemake(project, "--cores", "2")
    return project


def test_rules_are_formatted():
    files = ["Snakefile", *map(str, sorted(ROOT.glob("workflow/rules/*.smk")))]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls shfmt
    subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", *files],
        cwd=ROOT, check=True, env=os.environ | {"PATH": path},
    )  # fmt: skip


def test_lint():
    assert "Congratulations" in snakemake(ROOT, "--lint")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A copy of the project as it is in git."""
    return copy_of_project(tmp_path_factory.mktemp("untouched"))


TABLES = ["scores.csv", "scores.parquet", "summary.csv", "table.csv", "table.md", "table.tex",
          "gallery.html"]  # fmt: skip


@pytest.mark.parametrize("target", ["all", "emoji_models"])
def test_every_target_has_jobs(untouched, target):
    assert planned_jobs(snakemake(untouched, "-n", target))


def test_every_table_and_figure_is_a_target(untouched):
    names = [f"results/emoji-flux/{name}" for name in TABLES]
    names += [f"figures/emoji-flux/{name}" for name in FIGURES if name.endswith("pdf")]
    printed = snakemake(untouched, "-n", *names)
    outputs = re.findall(r"^    output: (.*)", printed, re.MULTILINE)
    assert {*names} <= {*", ".join(outputs).split(", ")}


def without(folder: Path, module: str) -> dict[str, str]:
    """Return the variables of a process in which a module is not installed."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\n\n\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        return None if name == {module!r} else super().find_spec(name, path, target)\n"
        "\n\nsys.meta_path = [Without if f is PathFinder else f for f in sys.meta_path]\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_jobs_are_known_where_torch_is_missing(untouched, tmp_path):
    printed = snakemake(untouched, "-n", environment=without(tmp_path, "torch"))
    assert planned_jobs(printed)["sample"] == 6


def test_a_missing_package_is_named_with_what_to_install(untouched, tmp_path):
    printed = snakemake(untouched, "-n", check=False, environment=without(tmp_path, "safetensors"))
    assert "No module named 'safetensors'" in printed and "Traceback" not in printed
    assert "pip install -c envs/workflow.txt -e '.[workflow]'" in printed


def test_a_prompt_file_with_a_space_in_its_name_is_one_argument(untouched):
    shutil.copy(untouched / "data/prompts/emoji-calibration.txt", untouched / "data/my own.txt")
    changed = "calibration={'prompts': 'data/my own.txt', 'seed': 7}"
    printed = snakemake(untouched, "-n", "-p", "--config", changed)
    assert printed.count("--prompts 'data/my own.txt'") == 2  # calibrate and refine


def test_few_prompts_and_other_budgets_need_no_other_settings(untouched):
    printed = snakemake(untouched, "-n", "-p", "--config", "num_prompts=8", "budgets=[5, 11]")
    assert "--budget 5 --prompts 0 4" in printed
    assert planned_jobs(printed)["sample"] == 6


@pytest.mark.parametrize("target", ["tables", "figures", "gallery"])
def test_targets_have_names(untouched, target):
    jobs = planned_jobs(snakemake(untouched, "-n", target))
    assert jobs["sample"] == 6 and jobs["gallery"] == (target == "gallery")
    assert bool(jobs["compare"]) == (target == "tables")
    assert bool(jobs["figure_pareto"]) == (target == "figures")


def test_every_rule_says_what_it_does(untouched):
    listed = [line for line in snakemake(untouched, "--list").splitlines() if " (" in line]
    rules = snakemake(untouched, "--list-rules").splitlines()
    assert len(listed) == len([line for line in rules if re.match(r"\w+( \(|$)", line)]) > 30


def test_mistake_in_the_config_stops_before_anything_runs(untouched):
    printed = snakemake(untouched, "-n", "--config", "sead=3", check=False)
    assert "unknown key 'sead'; there are" in printed and "did you mean 'seed'?" in printed
    assert "Traceback" not in printed


def test_killed_run_continues_and_finishes(finished):
    assert {path.name for path in finished.glob("figures/emoji-flux/[!.]*.p??")} == set(FIGURES)
    assert all(path.stat().st_size > 5000 for path in finished.glob("figures/emoji-flux/[!.]*.p??"))


def test_every_table_is_written(finished):
    results = finished / "results/emoji-flux"
    assert all((results / name).stat().st_size > 500 for name in TABLES)
    table = pd.read_csv(results / "table.csv")
    assert table["method"][0] == "full"
    assert table.groupby("full_steps")["method"].first()[[3, 4]].eq("fewer-steps").all()
    assert set(table["baseline"].dropna()) == {"fewer-steps-03", "fewer-steps-04"}
    assert table["psnr_low"][1:].isna().all()  # three prompts are too few for an interval
    assert table["psnr_place"].isna().all()


def test_summary_has_a_row_for_every_run(finished):
    table = pd.read_csv(finished / "results/emoji-flux/summary.csv")
    assert set(table["reference"]) == {"full", "fewer-steps-04"}
    summary = table[table["reference"] == "full"].set_index("run")
    runs = {f"{label}-{budget:02d}" for label in ("fewer-steps", "EigenCache") for budget in (3, 4)}
    bounded = set(summary.filter(like="EigenCache-20dB", axis=0).index)
    assert set(summary.index) == runs | {"full"} | bounded and len(bounded) == 1
    assert summary.loc["EigenCache-03", "num_steps"] == 8
    assert summary.loc["EigenCache-03", "full_steps"] == 3
    assert summary.loc["fewer-steps-04", "num_steps"] == 4
    assert summary.loc["full", "speedup"] == 1 and summary.loc["full", "psnr"] == float("inf")
    assert (summary["images"] == 3).all()
    ours = summary.filter(like="EigenCache", axis=0)
    assert (ours["predicted_psnr"] > 20).all() and len(ours) == 3
    cached = summary.drop("full")
    metrics = ["psnr", "ssim", "st_lpips_alex", "clip_score"]
    assert cached[[*metrics, "seconds", "speedup"]].notna().all(axis=None)
    # A few small images on a busy machine: one pair may well be slower.
    assert (cached["speedup"] > 0).all() and cached["speedup"].median() > 1


def test_images_and_sets_are_scored_against_every_reference(finished):
    results = finished / "results/emoji-flux"
    scores = pd.read_csv(results / "scores/EigenCache.csv")
    assert list(scores) == [
        "run", "prompt_index", "reference", "psnr", "ssim", "st_lpips_alex", "clip_score",
    ]  # fmt: skip
    references = ["full", "fewer-steps-04"]
    assert scores["reference"].tolist() == 2 * 3 * references
    sets = pd.read_csv(results / "sets/EigenCache.csv").set_index(["run", "reference"])
    assert list(sets.index) == [(f"EigenCache-{b:02d}", r) for b in (3, 4) for r in references]
    assert (sets["frechet_lite0"] > 0).all()
    own = pd.read_csv(results / "scores/fewer-steps.csv").query("run == reference")
    assert len(own) == 3 and (own["psnr"] == float("inf")).all() and (own["ssim"] == 1).all()
    about = json.loads((results / "scores/EigenCache/000.csv.json").read_text())["metrics"]
    assert about["st_lpips_alex"]["weights"] and about["psnr"]["version"]


def test_gallery_shows_every_run(finished):
    summary = pd.read_csv(finished / "results/emoji-flux/summary.csv")
    page = (finished / "results/emoji-flux/gallery.html").read_text()
    assert all(f'"name": "{run}"' in page for run in summary["run"])
    assert "6 runs on 3 prompts" in page


def test_report_has_every_figure_with_its_caption(finished, tmp_path):
    report = tmp_path / "report.html"
    snakemake(finished, "--report", str(report))
    text = report.read_text()
    # Of each figure one of its two files; the other would double the size of the page.
    assert all(f"figures/emoji-flux/{name}.png" in text for name in DRAWN)
    assert "data:application/pdf" not in text
    assert text.count('"caption": "<p>') >= len(DRAWN)
    # Where one of a category has no label, the report lists all of them by file.
    assert '"labels": null' not in text
    assert r"href=\"gallery.html\"" in text


def verify(folder: Path) -> subprocess.CompletedProcess:
    return program("-m", "reproduction.commands.verify", "results", "figures", folder=folder)


def test_every_result_has_a_manifest_that_agrees(finished):
    kinds = ("results/*/**/*.csv", "results/*/*.parquet", "results/*/*.md", "results/*/*.tex",
             "results/*/*.html", "results/*/**/*.safetensors", "figures/*/*.p??")  # fmt: skip
    found = [path for kind in kinds for path in finished.glob(kind)]
    results = [path for path in found if not path.name.startswith(".")]  # of killed jobs
    assert len(results) > 20
    assert [path for path in results if not Path(f"{path}.json").is_file()] == []
    done = verify(finished)
    assert done.returncode == 0, done.stdout
    assert f"checked {len(results)} results" in done.stdout


def test_no_secret_is_written(finished):
    written = [
        path
        for folder in ("logs", "results", "figures", "models", ".snakemake/log")
        for path in (finished / folder).rglob("*")
        if path.is_file()
    ]
    assert len(written) > 50
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_images_damaged_in_silence_or_gone_are_made_again(finished):
    results = finished / "results/emoji-flux"
    image = results / "images/full/000/fewer-steps-03/00001.png"
    whole, when = image.read_bytes(), image.stat()
    image.write_bytes(whole[:-20] + b"\0" + whole[-19:])
    os.utime(image, ns=(when.st_atime_ns, when.st_mtime_ns))
    scores = results / "scores/fewer-steps.csv"
    scores.unlink()
    (results / "scores/full/000.csv").unlink()
    wanted = str(scores.relative_to(finished))
    printed = snakemake(finished, "--cores", "2", wanted, check=False)
    assert "images/full/000/fewer-steps-03/00001.png: missing or altered" in printed
    assert "delete the folder results/emoji-flux/images/full/000 and run again" in printed
    assert not scores.exists() and verify(finished).returncode == 1
    shutil.rmtree(results / "images/full/000")
    snakemake(finished, "--cores", "2", wanted)
    assert image.read_bytes() == whole

    images = results / "images/full/000"
    before = {path.relative_to(images): path.read_bytes() for path in images.glob("*/*.png")}
    assert len(before) == 3 * 3
    shutil.rmtree(images)
    (finished / "figures/emoji-flux/samples.pdf").unlink()
    assert planned_jobs(snakemake(finished, "-n"))["sample"] == 1
    (images / "stranger-03").mkdir(parents=True)  # what no run has made does not outlive the next
    (images / "stranger-03/00000.png").write_bytes(b"no image")
    (results / "shards/full/000.csv").unlink()
    snakemake(finished, "--cores", "2")
    after = {path.relative_to(images): path.read_bytes() for path in images.glob("*/*.png")}
    assert after == before
    assert verify(finished).returncode == 0


def test_nothing_is_left_to_do(finished):
    assert not planned_jobs(snakemake(finished, "-n"))


def test_no_temporary_file_is_left_behind(finished):
    # Of the killed jobs' own half-written files only hidden ones may remain, and none as a result.
    assert not [p for p in finished.glob("results/**/*.part*") if not p.name.startswith(".")]


def test_truncated_weights_are_named(finished):
    weights = finished / "models/emoji-flux/vae/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    record = finished / "results/emoji-flux/shards/full/000.csv"
    kept = record.read_bytes()
    record.unlink()
    try:
        printed = snakemake(
            finished, "--cores", "1", str(record.relative_to(finished)), check=False
        )
    finally:
        weights.write_bytes(whole)
    assert "diffusion_pytorch_model.safetensors: has 1000 bytes" in printed
    assert not record.exists()
    record.parent.mkdir(exist_ok=True)
    record.write_bytes(kept)

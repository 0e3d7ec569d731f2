"""What runs again after an edit: exactly the jobs that depend on what was edited.

Snakemake decides by what it remembers of the jobs that made the results. So the results of a small
experiment are stood in for by small files, which `--touch` takes for made; nothing is sampled here.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers import copy_of_project, planned_jobs, snakemake

pytestmark = pytest.mark.slow

PACKAGE = "workflow/reproduction"
METHODS = {
    "fewer-steps": {"method": "fewer-steps"},
    "TaylorSeer": {"method": "TaylorSeer", "order": 1},
    "design": {"method": "EigenCache-design"},
    "EigenCache": {"method": "EigenCache", "held_out": 1},
}
# In an order in which the jobs that sample them are the same.
REORDERED = {"EigenCache": METHODS["EigenCache"], **METHODS}
Edit = tuple[str, Callable[[str], str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small experiment that Snakemake takes for finished."""
    folder = copy_of_project(tmp_path_factory.mktemp("reruns"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"num_prompts": 3, "budgets": [3, 4], "shards": 1, "timed_prompts": 1}
    config |= {"metrics": ["psnr", "ssim", "clip_score"], "methods": METHODS}
    config["arguments"]["num_inference_steps"] = 8
    config["calibration"]["num_prompts"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows = [line.split("\t") for line in snakemake(folder, "--summary").splitlines()]
    for name, *_ in [row for row in rows if len(row) > 3][1:]:
        if "/images/" in name:  # a folder
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # Of a manifest the rules read how large the model is.
            (folder / name).write_text("{}" if name.endswith("manifest.json") else "made\n")
    snakemake(folder, "--touch", "--forceall", "--cores", "1")
    assert not planned_jobs(snakemake(folder, "-n"))
    return folder


def edited(path: str, old: str = "", new: str = "EDITED = 1\n") -> Edit:
    """Return the edit of a file: a text that takes another's place, or is added at the end."""

    def edit(text: str) -> str:
        assert old in text, f"{path} has no {old!r}"
        return text.replace(old, new, 1) if old else f"{text.rstrip()}\n\n\n{new}"

    return path, edit


def configured(**changes: object) -> Edit:
    """Return the edit of some keys of config.yaml; `a__b` is the key `b` of `a`."""

    def edit(text: str) -> str:
        config = yaml.safe_load(text)
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = config
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
        return yaml.safe_dump(config, sort_keys=False)

    return "config.yaml", edit


# What follows from scores, from the records of every label, from plans and from kernels.
SHOWN = {"table": 1, "compare": 1, "gallery": 1, "figure_pareto": 1, "figure_budget": 1,
         "figure_metrics": 1, "figure_samples": 1, "figure_strip": 1}  # fmt: skip
GATHERED = {"gather": 5, **SHOWN}
SCORED = {"score": 3, **GATHERED}
MERGED = {"merge": 5, **GATHERED}
SAMPLED = {"sample": 3, **MERGED, **SCORED}
ERRORS = {"errors": 1, "figure_errors": 1}
COSTS = {"costs": 1, "figure_costs": 1}
PLANNED = {**ERRORS, "figure_plans": 1, "figure_schedules": 1}


def sampled(groups: int, labels: int) -> dict[str, int]:
    """Return what follows from other plans of some groups; none of them has the reference.

    TaylorSeer and design are sampled together here, and EigenCache by itself.
    """
    jobs = {"sample": groups, "merge": labels, "score": groups, "gather": labels}
    return {**jobs, **SHOWN, **PLANNED}


REFINED = {"refine": 1, **sampled(1, 1)}
CALIBRATED = {"calibrate": 1, "figure_kernel": 1, "plan": 2, "refine": 1, **sampled(2, 3)}
EVERYTHING = {**CALIBRATED, **SAMPLED, **COSTS}
EDITS: dict[str, tuple[Edit, dict[str, int]]] = {
    "a metric in use": (edited("eigencache/metrics/_ssim.py"), SCORED),
    "a metric not in use": (edited("eigencache/metrics/_lpips_alex.py"), {}),
    "a new metric": (
        edited(
            "eigencache/metrics/__init__.py", '    "psnr": Metric(',
            '    "new": Metric("New", higher=True, paired=True, digits=2),\n    "psnr": Metric(',
        ),
        {},
    ),
    "how a metric in use is read": (
        edited("eigencache/metrics/__init__.py", 'Metric("SSIM"', 'Metric("similarity"'), SCORED,
    ),
    "what loads the images to score": (edited("eigencache/metrics/images.py"), SCORED),
    "a figure": (
        edited(f"{PACKAGE}/figures/pareto.py"),
        {"figure_pareto": 1, "figure_budget": 1, "figure_metrics": 1},
    ),
    "the style of figures": (
        edited(f"{PACKAGE}/figures/style.mplstyle", new="# another\n"),
        {f"figure_{name}": 1 for name in ("pareto", "budget", "metrics", "strip", "samples",
                                          "plans", "schedules", "kernel", "errors", "costs")},
    ),
    "the caption of a figure": (edited("workflow/report/pareto.rst", new="More.\n"), {}),
    "a new figure": (
        edited(
            f"{PACKAGE}/figures/_table.py", '        "budget": Figure(',
            '        "kernel": Figure("new", summary),\n        "budget": Figure(',
        ),
        {},
    ),
    "a table": (edited(f"{PACKAGE}/stages/compare.py"), {"compare": 1}),
    "the typesetting": (edited(f"{PACKAGE}/tables/typeset.py"), {"compare": 1}),
    "the statistics": (edited("eigencache/metrics/statistics.py"), SHOWN),
    "the gallery's script": (edited(f"{PACKAGE}/gallery/page.js", new="// more\n"), {"gallery": 1}),
    "the fetcher": (edited(f"{PACKAGE}/models/hub.py"), {}),
    "the stage that fetches": (edited(f"{PACKAGE}/stages/fetch.py"), {}),
    "how manifests are written": (edited(f"{PACKAGE}/provenance/record.py"), {}),
    "how manifests are read": (edited(f"{PACKAGE}/provenance/manifest.py"), MERGED),
    "how code is hashed": (edited(f"{PACKAGE}/provenance/code.py"), {}),
    "the lease": (edited(f"{PACKAGE}/devices/lease.py"), {}),
    "the models of the configuration": (edited(f"{PACKAGE}/config.py"), {}),
    "a predictor in use": (
        edited("eigencache/predictors/_taylor.py"), {"plan": 1, **sampled(1, 2), **COSTS},
    ),
    "the predictor of two methods": (
        edited("eigencache/predictors/_kriging.py"), {"plan": 1, "refine": 1, **sampled(2, 3)},
    ),
    "a predictor not in use": (edited("eigencache/predictors/_chebyshev.py"), {}),
    "a new predictor and its method": (
        edited(
            "eigencache/methods.py", '    "FORA": Method(',
            '    "New": Method(Interval, Reuse, "output", "here"),\n    "FORA": Method(',
        ),
        {},
    ),
    "a new method below the table": (
        edited(
            "eigencache/methods.py", "\n\ndef method_of(",
            '\nMETHODS["New"] = Method(Interval, Reuse, "output", "here")\n\n\ndef method_of(',
        ),
        {},
    ),
    "another row for a method in use, below the table": (
        edited(
            "eigencache/methods.py", "\n\ndef method_of(",
            '\nMETHODS["TaylorSeer"] = Method(Interval, Taylor, "blocks", "here")\n'
            "\n\ndef method_of(",
        ),
        {"plan": 1, **sampled(1, 2), **COSTS},
    ),
    "the row of a method in use": (
        edited("eigencache/methods.py", 'Taylor, "modules"', 'Taylor, "blocks"'),
        {"plan": 1, **sampled(1, 2), **COSTS},
    ),
    "the runtime": (edited("eigencache/runtime/_driver.py"), EVERYTHING),
    "the closed loop": (edited("eigencache/closed_loop.py"), REFINED),
    "the stage that calibrates": (
        edited(f"{PACKAGE}/stages/calibrate.py"),
        {"calibrate": 1, "figure_kernel": 1, "plan": 2, **sampled(1, 2)},
    ),
    "a comment and a docstring of the runtime": (
        edited("eigencache/runtime/_driver.py", '"""', '# A comment.\n"""More. '), {},
    ),
    "a command of the library": (edited("eigencache/commands/sample.py"), {}),
    "figures.samples.zoom": (configured(figures__samples__zoom="auto"), {"figure_samples": 1}),
    "figures.errors.prompts": (configured(figures__errors__prompts=1), ERRORS),
    "figures.costs.images": (configured(figures__costs__images=1), COSTS),
    "metrics": (configured(metrics=["psnr", "ssim"]), SCORED),
    "references": (configured(references=["fewer-steps-04"]), SCORED),
    "baseline": (configured(baseline="TaylorSeer"), SHOWN),
    "seed": (configured(seed=5), {**SAMPLED, **ERRORS, **COSTS}),
    "num_prompts": (configured(num_prompts=2), {**SAMPLED, **ERRORS}),
    "budgets": (
        configured(budgets=[3, 4, 5]),
        {"plan": 2, "refine": 1, **SAMPLED, **PLANNED, **COSTS},
    ),
    "an option of a method": (
        configured(methods__TaylorSeer__order=2), {"plan": 1, **sampled(1, 2)},
    ),
    "a method more": (
        configured(methods__FORA={"method": "FORA"}), {"plan": 1, **sampled(1, 3)},
    ),
    "the order of methods": (
        configured(methods=REORDERED),
        {**SHOWN, "figure_errors": 1, "figure_plans": 1, "figure_schedules": 1},
    ),
    "calibration.seed": (configured(calibration__seed=5), CALIBRATED),
    "arguments.guidance_scale": (configured(arguments__guidance_scale=2.0), EVERYTHING),
    "dtype": (configured(dtype="bfloat16"), EVERYTHING),
    "threads": (configured(threads=2), EVERYTHING),
    "low_memory": (configured(low_memory=True), {**SAMPLED, **COSTS}),
    "device": (configured(device="cpu"), {}),
}  # fmt: skip


def after(folder: Path, *edits: Edit) -> dict[str, int]:
    """Return the jobs that would run after some edits, and take them back."""
    files = {folder / path: (folder / path).stat() for path, _ in edits}
    before = {file: file.read_text() for file in files}
    for path, edit in edits:
        (folder / path).write_text(edit((folder / path).read_text()))
    try:
        jobs = planned_jobs(snakemake(folder, "-n"))
    finally:
        for file, when in files.items():
            file.write_text(before[file])
            os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    del jobs["all"]
    return jobs


@pytest.mark.parametrize("name", [name for name, (_, expected) in EDITS.items() if expected])
def test_an_edit_runs_what_depends_on_it_and_nothing_else(finished, name):
    edit, expected = EDITS[name]
    assert after(finished, edit) == expected


def test_edits_that_nothing_depends_on_run_nothing(finished):
    """All at once: no edit can undo what another would run."""
    assert after(finished, *(edit for edit, expected in EDITS.values() if not expected)) == {}

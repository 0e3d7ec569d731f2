"""The command `eigencache`: from a model to images, the workflow's images, and plain errors."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eigencache import cli
from eigencache.calibration.sampler import Settings, load_encoded
from eigencache.commands._common import parsed_options
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan, predicted_latent_error, predicted_psnr
from reproduction.stages.sample import Run, sample_shard

ROOT = Path(__file__).parents[2]
MODEL, EVALUATION = ROOT / "data/emoji-flux", ROOT / "data/prompts/emoji-evaluation.txt"
CALIBRATION = ROOT / "data/prompts/emoji-calibration.txt"
SETTINGS = Settings(num_steps=8, height=64, width=64, max_sequence_length=16, dtype="float32")
SMALL = ["--steps", 8, "--height", 64, "--width", 64, "--max-sequence-length", 16]
SMALL += ["--dtype", "float32"]


def run(*arguments):
    """Run the command in this process; the exit status, or what it exits with."""
    before = sys.argv
    sys.argv = ["eigencache", *map(str, arguments)]
    try:
        cli.main()
    finally:
        sys.argv = before


def calibrate(path, *more, prompts=3):
    run("calibrate", "--model", MODEL, "--prompts", CALIBRATION, "--num-prompts", prompts,
        "--threads", 1, "--out", path, *SMALL, *more)  # fmt: skip


def sample(folder, *more, prompts=2, model=MODEL):
    run("sample", "--model", model, "--prompts", EVALUATION, "--num-prompts", prompts,
        "--threads", 1, "--out", folder, *more)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a kernel, and a plan of 4 full steps of 8."""
    folder = tmp_path_factory.mktemp("made")
    calibrate(folder / "kernel.safetensors")
    run("plan", "--kernel", folder / "kernel.safetensors", "--full-steps", 4,
        "--out", folder / "plan.safetensors")  # fmt: skip
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- What it makes


def test_a_plan_is_that_of_the_kernel(made, capsys):
    kernel, plan = Kernel.load(made / "kernel.safetensors"), Plan.load(made / "plan.safetensors")
    assert (kernel.runs, kernel.tap, len(kernel.timesteps)) == (3, "output", 8)
    expected = METHODS["EigenCache-design"].plan(4, kernel.timesteps, kernel)
    assert np.array_equal(plan.weights, expected.weights)
    assert predicted_latent_error(plan) > 0
    assert files(made) == ["kernel.safetensors", "plan.safetensors"]


@pytest.mark.parametrize("plan", [True, False], ids=["plan", "full"])
def test_images_are_those_of_the_workflow(made, tmp_path, plan, capsys):
    """The settings come from the plan; without one they are stated."""
    path = made / "plan.safetensors"
    sample(tmp_path / "ours", "--seed", 5, *(["--plan", path] if plan else SMALL))
    torch.set_num_threads(1)
    prompts = read_prompts(EVALUATION, 3)
    pipe, texts = load_encoded(MODEL, prompts, SETTINGS)
    runs = [Run("theirs", 8, Plan.load(path) if plan else None)]
    list(sample_shard(pipe, prompts, texts, range(3), runs, SETTINGS, 5, tmp_path, timed=0))
    assert files(tmp_path / "ours") == ["00000.png", "00001.png"]
    for name in files(tmp_path / "ours"):
        ours, theirs = (tmp_path / run / name for run in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()
    said = capsys.readouterr().out
    assert ("8 steps in full, 8 skipped; " in said) == plan


def test_a_formula_s_plan_knows_the_settings_too(made, tmp_path, capsys):
    plan = tmp_path / "plan.safetensors"
    run("plan", "--kernel", made / "kernel.safetensors", "--method", "TaylorSeer", "--option",
        "order=2", "--tap", "output", "--full-steps", 5, "--out", plan)  # fmt: skip
    assert "full steps [0, 1, 2, 4, 6] of 8" in capsys.readouterr().out
    assert Plan.load(plan).source["predictor"] == "Taylor(order=2)"
    sample(tmp_path / "images", "--plan", plan, prompts=1)
    assert files(tmp_path / "images") == ["00000.png"]


def test_a_quality_is_tried_on_the_model(made, tmp_path, capsys):
    plan = tmp_path / "plan.safetensors"
    run("plan", "--kernel", made / "kernel.safetensors", "--psnr", 35, "--model", MODEL,
        "--prompts", CALIBRATION, "--num-prompts", 3, "--threads", 1, "--out", plan)  # fmt: skip
    assert predicted_psnr(Plan.load(plan)) >= 35
    assert "predicted PSNR" in capsys.readouterr().out


def test_the_closed_loop_is_tried_on_the_model(made, tmp_path):
    plan = tmp_path / "plan.safetensors"
    run("plan", "--kernel", made / "kernel.safetensors", "--method", "EigenCache", "--full-steps",
        4, "--option", "held_out=1", "--model", MODEL, "--prompts", CALIBRATION, "--num-prompts",
        3, "--threads", 1, "--out", plan)  # fmt: skip
    assert "in closed loop" in Plan.load(plan).source["closed loop"]


def test_options_are_read_as_json_or_else_as_text():
    options = parsed_options(["order=2", "ordinary=true", "window=null", "features=full", "a=b=c"])
    assert options == {
        "order": 2, "ordinary": True, "window": None, "features": "full", "a": "b=c",
    }  # fmt: skip
    for pairs, message in ([["order"], "NAME=VALUE"], [["a=1", "a=2"], "stated twice"]):
        with pytest.raises(ValueError, match=message):
            parsed_options(pairs)


# ---- What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--kernel", "none", "--full-steps", 4], "none: no such file"),
        (["plan", "--full-steps", 4, "--method", "Eigen"], "no method 'Eigen'; there are FORA"),
        (["plan", "--full-steps", 9], "full_steps must lie between 1 and the 8 steps"),
        (["plan", "--full-steps", 4, "--option", "order=1"], r"unknown options \['order'\]"),
        (["plan", "--full-steps", 4, "--option", "window=x"], "window must be a whole number"),
        (["plan", "--full-steps", 4, "--method", "EigenCache"], "state --model and --prompts"),
        (["plan", "--full-steps", 4, "--method", "EigenCache-published"], "calibrate one of that"),
        (["plan", "--psnr", 50, "--method", "FORA"], "an interval does not give"),
        (["calibrate", "--model", ROOT], "no model_index.json"),
        (["calibrate", "--num-prompts", 0], "--num-prompts must be at least 1"),
        (["calibrate", "--steps", 0], "--steps must be above 0"),
        (["calibrate", "--prompts", "none.txt"], "no such prompt file"),
        (["calibrate", "--option", "runs=9"], "runs=9: there are only 1 prompts"),
        (["sample", "--plan", "PLAN", "--steps", 9], "made for 8 steps, not for 9"),
        (["sample", "--plan", "PLAN", "--height", 96], "expects timestep"),
        (["sample", "--plan", "KERNEL"], "its format is 'eigencache-kernel-1'"),
        (["sample", "--threads", 0], "--threads must be at least 1"),
    ],
)
def test_errors_are_one_plain_line_and_leave_nothing(made, tmp_path, arguments, message, capsys):
    command, *stated = arguments
    kernel, plan = made / "kernel.safetensors", made / "plan.safetensors"
    stated = [{"PLAN": plan, "KERNEL": kernel}.get(value, value) for value in stated]
    given = {"--out": tmp_path / "out.safetensors"}
    given |= {"--kernel": kernel} if command == "plan" else {"--model": MODEL, "--num-prompts": 1}
    given |= {} if command == "plan" else {"--prompts": EVALUATION}
    given |= dict(zip(stated[::2], stated[1::2], strict=True))
    with pytest.raises(SystemExit) as exit:
        run(command, *(part for pair in given.items() for part in pair))
    assert "\n" not in exit.value.code
    assert exit.match(rf"^eigencache: \w+: .*{message}")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# ---- What it says


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as exit:
        run(name, "--help")
    assert exit.value.code == 0
    said = capsys.readouterr().out
    module = importlib.import_module(f"eigencache.commands.{name}")
    assert module.__doc__.strip() in said and module.EXAMPLES.strip() in said
    examples = module.EXAMPLES.replace("\\\n", " ").splitlines()
    shown = [line.split()[1:] for line in examples if line.strip().startswith("eigencache ")]
    assert shown
    parser = cli.parser()
    for words in shown:
        if words[-1] != "...":
            assert parser.parse_args(words).run is module.run


def test_help_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "eigencache.cli", "sample", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert not any(f"| {name}\n" in done.stderr for name in ("torch", "numpy", "pandas"))

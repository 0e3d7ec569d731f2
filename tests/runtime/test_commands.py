"""The command `eigencache`: from a model to images, the workflow's images, and plain errors."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from eigencache import cli
from eigencache.calibration.sampler import load_pipeline
from eigencache.commands._common import parsed_options
from eigencache.commands.prompts import opened, read_calls, text_of
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan, PlanWarning
from reproduction.stages.sample import Run, sample_shard

ROOT = Path(__file__).parents[2]
EVALUATION = ROOT / "data/prompts/emoji-evaluation.txt"
MODEL = EMBEDDED = ROOT / "data/emoji-flux"
CALIBRATION = ROOT / "data/prompts/emoji-calibration.txt"
ARGUMENTS = {"num_inference_steps": 8, "height": 16, "width": 16, "max_sequence_length": 24}
SMALL = ["--steps", 8, "--height", 16, "--width", 16, "--max-sequence-length", 24]
SMALL += ["--dtype", "float32"]


@pytest.fixture(scope="module", autouse=True)
def model(tiny_model):
    """The tests here run a tiny random pipeline: MODEL is its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "MODEL", tiny_model)
        yield


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


def sample(folder, *more, prompts=2, model=None):
    run("sample", "--model", model or MODEL, "--prompts", EVALUATION, "--num-prompts", prompts,
        "--threads", 1, "--out", folder, *more)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a kernel, and a plan of 4 full steps of 8."""
    folder = tmp_path_factory.mktemp("made")
    calibrate(folder / "kernel.safetensors")
    run("plan", "--kernel", folder / "kernel.safetensors", "--full-steps", 4,
        "--out", folder / "plan.safetensors")  # fmt: skip
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- What it makes


def test_a_plan_is_that_of_the_kernel(made, capsys):
    kernel, plan = Kernel.load(made / "kernel.safetensors"), Plan.load(made / "plan.safetensors")
    assert (kernel.runs, kernel.tap, len(kernel.timesteps)) == (3, "output", 8)
    expected = METHODS["EigenCache-design"].plan(4, kernel.timesteps, kernel)
    assert np.array_equal(plan.weights, expected.weights)
    assert plan.predicted_error > 0
    assert files(made) == ["kernel.safetensors", "plan.safetensors"]


@pytest.mark.parametrize("plan", [True, False], ids=["plan", "full"])
def test_images_are_those_of_the_workflow(made, tmp_path, plan, capsys):
    """The settings come from the plan; without one they are stated."""
    path = made / "plan.safetensors"
    sample(tmp_path / "ours", "--seed", 5, *(["--plan", path] if plan else SMALL))
    torch.set_num_threads(1)
    calls, pipe = read_calls(EVALUATION, 3), load_pipeline(MODEL, "float32")
    runs = [Run("theirs", "x", Plan.load(path) if plan else None)]
    list(sample_shard(pipe, calls, range(3), runs, ARGUMENTS, 5, tmp_path, timed=0))
    kept = ["plan.safetensors"] if plan else []
    assert files(tmp_path / "ours") == ["00000.png", "00001.png", *kept, "records.jsonl"]
    for name in files(tmp_path / "ours")[:2]:
        ours, theirs = (tmp_path / run / name for run in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()
    said = capsys.readouterr().out
    assert re.search(r"2 images, 2 of them new, [\d.e-]+ s each", said)
    assert f"{4 if plan else 8} steps computed in full" in said
    for index, row in enumerate(records(tmp_path / "ours")):
        assert row["prompt"] == calls[index]["prompt"] and row["seed"] == 5
        assert row["full_steps"] == (4 if plan else 8) and row["seconds"] > 0
        assert row["plan"] == (Plan.load(path).digest if plan else None)
        assert row["method"] == ("EigenCache-design" if plan else "full")
        # The plan knows with which guidance the pipeline was called by default.
        default = {"guidance_scale": 3.5, "true_cfg_scale": 1.0}
        assert row["arguments"] == ARGUMENTS | (default if plan else {})
        assert row["versions"]["torch"] == version("torch")


def test_a_formula_s_plan_knows_the_settings_too(made, tmp_path, capsys):
    plan = tmp_path / "plan.safetensors"
    run("plan", "--kernel", made / "kernel.safetensors", "--method", "TaylorSeer", "--option",
        "order=2", "--tap", "output", "--full-steps", 5, "--out", plan)  # fmt: skip
    assert "full steps [0, 1, 2, 4, 6] of 8" in capsys.readouterr().out
    assert Plan.load(plan).source["predictor"] == "Taylor(order=2)"
    sample(tmp_path / "images", "--plan", plan, prompts=1)
    assert files(tmp_path / "images") == ["00000.png", "plan.safetensors", "records.jsonl"]
    assert (tmp_path / "images/plan.safetensors").read_bytes() == plan.read_bytes()


def test_a_quality_is_tried_on_the_model(made, tmp_path, capsys):
    plan = tmp_path / "plan.safetensors"
    run("plan", "--kernel", made / "kernel.safetensors", "--psnr", 50, "--model", MODEL,
        "--prompts", CALIBRATION, "--num-prompts", 3, "--threads", 1, "--out", plan)  # fmt: skip
    assert Plan.load(plan).predicted_psnr >= 50
    assert "predicted PSNR" in capsys.readouterr().out
    run("plan", "--kernel", made / "kernel.safetensors", "--psnr", 45, "--method", "TaylorSeer",
        "--tap", "output", "--model", MODEL, "--prompts", CALIBRATION, "--num-prompts", 1,
        "--threads", 1, "--out", plan)  # fmt: skip
    at_interval = Plan.load(plan)
    assert at_interval.predicted_psnr >= 45 and at_interval.method == "TaylorSeer"


@pytest.mark.slow
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


# ---- Methods without a plan, folders, devices


HICACHE = ["--method", "HiCache", "--option", "order=2", "--option", "scale=0.6", *SMALL]


def test_a_method_that_needs_no_kernel_takes_one_line(tmp_path, made):
    sample(tmp_path / "a", *HICACHE, "--interval", 3)
    (row, _) = records(tmp_path / "a")
    timesteps = Plan.load(made / "plan.safetensors").timesteps
    expected = METHODS["HiCache"].plan(None, timesteps, every=3, order=2, scale=0.6)
    assert (row["plan"], row["full_steps"]) == (expected.digest, 4)
    assert list(expected.full_steps) == [0, 1, 2, 5]
    sample(tmp_path / "b", *HICACHE, "--full-steps", 4)
    assert records(tmp_path / "b")[0]["sha256"] == row["sha256"]


def test_full_steps_alone_sample_by_a_built_in_plan(tmp_path):
    sample(tmp_path / "images", *SMALL, "--full-steps", 3, prompts=1)
    (row,) = (json.loads(line) for line in (tmp_path / "images/records.jsonl").open())
    assert (row["full_steps"], row["built in"]) == (3, 3)
    assert row["steps"] > 3 and row["method"] == "EigenCache built in"
    assert Plan.load(tmp_path / "images/plan.safetensors").digest == row["plan"]


def test_full_steps_are_counted_in_the_steps_that_the_scheduler_makes(tmp_path):
    """Heun's makes 7 of `--steps 4`."""
    from diffusers import DiffusionPipeline, HeunDiscreteScheduler
    from pipelines.stand_ins import save

    save("SDXL", tmp_path / "sdxl")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "sdxl", use_safetensors=True)
    pipe.register_modules(scheduler=HeunDiscreteScheduler.from_config(pipe.scheduler.config))
    pipe.save_pretrained(tmp_path / "heun")
    line = ["--steps", 4, "--height", 16, "--width", 16, "--full-steps"]
    sample(tmp_path / "images", *line, 5, prompts=1, model=tmp_path / "heun")
    (row,) = records(tmp_path / "images")
    assert (row["full_steps"], row["steps"]) == (5, 7)
    with pytest.raises(SystemExit, match="--full-steps 8: an image takes only 7 steps"):
        sample(tmp_path / "more", *line, 8, prompts=1, model=tmp_path / "heun")


def test_a_quality_alone_samples_by_the_plan_that_a_probe_makes(tmp_path, caplog):
    sample(tmp_path / "good", "--psnr", 45, *SMALL)
    assert [record.name for record in caplog.records].count("eigencache") == 1
    rows = records(tmp_path / "good")
    (count,) = {row["full_steps"] for row in rows}
    assert 2 < count < 8 and {row["psnr"] for row in rows} == {45}
    assert {row["method"] for row in rows} == {"EigenCache-design"}
    caplog.clear()
    before = (tmp_path / "good/00001.png").read_bytes()
    (tmp_path / "good/00001.png").unlink()
    sample(tmp_path / "good", "--psnr", 45, *SMALL, "--resume")
    assert not caplog.records  # no second probe
    assert (tmp_path / "good/00001.png").read_bytes() == before
    plan = tmp_path / "good/plan.safetensors"
    sample(tmp_path / "again", "--plan", plan)
    assert (tmp_path / "again/00001.png").read_bytes() == before


def test_a_plan_that_is_not_the_folder_s_is_refused(tmp_path, made):
    folder, plan = tmp_path / "x", tmp_path / "x/plan.safetensors"
    folder.mkdir()
    plan.write_bytes((made / "plan.safetensors").read_bytes())
    for more in (["--full-steps", 3], []):
        with pytest.raises(SystemExit, match=rf"{plan}: no image here says .* state --plan"):
            sample(folder, *SMALL, *more)
    plan.unlink()
    sample(folder, *SMALL, "--full-steps", 3)
    digest = records(folder)[0]["plan"]
    plan.write_bytes((made / "plan.safetensors").read_bytes())
    (folder / "00001.png").unlink()
    with pytest.raises(SystemExit, match=rf"00000\.png was made by plan {digest[:12]}; put that"):
        sample(folder, *SMALL, "--full-steps", 3, "--resume")
    plan.unlink()
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace(digest, "f" * 64))
    with pytest.raises(SystemExit, match=r"00000\.png was made by plan ffffffffffff"):
        sample(folder, *SMALL, "--full-steps", 3, "--resume")
    assert not plan.exists()


def test_a_plan_may_lie_where_its_images_go(tmp_path, made):
    (tmp_path / "plan.safetensors").write_bytes((made / "plan.safetensors").read_bytes())
    sample(tmp_path, "--plan", tmp_path / "plan.safetensors", prompts=1)
    assert files(tmp_path) == ["00000.png", "plan.safetensors", "records.jsonl"]


def test_a_kernel_designs_for_other_steps(tmp_path, made):
    small = list(SMALL)
    small[small.index("--steps") + 1] = 12
    sample(tmp_path / "a", "--method", "EigenCache-design", "--kernel", made / "kernel.safetensors",
           "--full-steps", 5, *small)  # fmt: skip
    (row, _) = records(tmp_path / "a")
    assert (row["steps"], row["full_steps"]) == (12, 5)
    made = Plan.load(tmp_path / "a/plan.safetensors")
    assert made.arguments["num_inference_steps"] == len(made) == 12
    assert made.arguments["height"] == made.arguments["width"] == 16
    assert np.isnan(made.predicted_error)  # the kernel has 8 ranks
    sample(tmp_path / "b", "--plan", tmp_path / "a/plan.safetensors")
    assert records(tmp_path / "b")[0]["sha256"] == row["sha256"]


def sample_table(table, folder, *more):
    run("sample", "--model", MODEL, "--prompts", table, "--threads", 1, "--out", folder, *more)


def test_an_argument_of_every_prompt_goes_before_the_plan_s(tmp_path, made):
    """The plan remembers guidance that is the default, or the same for all of its own prompts."""
    table = tmp_path / "prompts.tsv"
    table.write_text("prompt\tguidance_scale\na cat\t2\na dog\t2\n")
    with pytest.warns(PlanWarning, match=r"made at guidance_scale 3\.5, called with 2"):
        sample_table(table, tmp_path / "a", "--plan", made / "plan.safetensors")
    run("calibrate", "--model", MODEL, "--prompts", table, *SMALL, "--out", tmp_path / "k")
    run("plan", "--kernel", tmp_path / "k", "--full-steps", 4, "--out", tmp_path / "p")
    sample_table(table, tmp_path / "b", "--plan", tmp_path / "p")
    assert Plan.load(tmp_path / "p").arguments["guidance_scale"] == 2


def test_prompts_of_other_steps_do_not_share_a_plan(tmp_path):
    table = tmp_path / "prompts.tsv"
    table.write_text("prompt\tnum_inference_steps\na cat\t8\na dog\t6\n")
    with pytest.raises(SystemExit, match="num_inference_steps differs between the prompts"):
        sample_table(table, tmp_path / "a", "--full-steps", 3, *SMALL[2:])
    assert not (tmp_path / "a").exists() or not files(tmp_path / "a")


def test_devices_with_a_space_between_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--gpus cpu cpu: write different devices with commas"):
        sample(tmp_path / "a", "--gpus", "cpu cpu", *SMALL)


@pytest.mark.parametrize("more", [["--method", "FORA", "--tap", "output"], []])
def test_a_second_expert_begins_within_the_budget(tmp_path, more):
    from pipelines.stand_ins import save

    save("Wan2.2-T2V-A14B", tmp_path / "wan")
    arguments = {"num_frames": 5, "guidance_scale": 4.0, "guidance_scale_2": 3.0}
    sample(tmp_path / "videos", *more, "--full-steps", 3, "--steps", 8, "--height", 16,
           "--width", 16, "--dtype", "float32", "--arguments", json.dumps(arguments),
           model=tmp_path / "wan", prompts=1)  # fmt: skip
    (row,) = records(tmp_path / "videos")
    assert (row["full_steps"], row["steps"]) == (3, 8)


@pytest.mark.slow
def test_devices_share_prompts_and_plan_and_give_the_same_images(tmp_path, capfd):
    sample(tmp_path / "one", "--psnr", 45, *SMALL, prompts=3)
    capfd.readouterr()
    sample(tmp_path / "two", "--psnr", 45, *SMALL, "--gpus", "cpu,cpu", prompts=3)
    assert capfd.readouterr().err.count("psnr=45: the first call") == 1  # one of them makes it
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one")[:4]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [row["prompt_index"] for row in records(tmp_path / "two")] == [0, 1, 2]
    digest = Plan.load(tmp_path / "two/plan.safetensors").digest
    assert [row["plan"] for row in records(tmp_path / "two")] == [digest] * 3


@pytest.mark.slow
def test_a_device_that_fails_is_named(tmp_path, monkeypatch):
    """Its processes are forks, which need not import torch again."""
    forked = partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "spawn", forked)
    with pytest.raises(SystemExit, match="sampling on device 99 failed"):
        sample(tmp_path / "x", "--gpus", "cpu,99", *SMALL)


def test_a_folder_holds_one_run(tmp_path):
    folder = tmp_path / "x"
    sample(folder, *SMALL)
    before = records(folder)
    for more, message in (
        ([], "holds images already, 2 of them; choose another folder, or state --resume"),
        (["--resume", "--seed", 9], "2 images are of another run, 00000.png among them"),
        (["--resume", "--steps", 9], "2 images are of another run"),
    ):
        with pytest.raises(SystemExit, match=message):
            sample(folder, *SMALL, *more)
    (folder / "00001.png").unlink()
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"prompt_index": 1, "prom')  # killed while it wrote
    sample(folder, *SMALL, "--resume", prompts=3)
    after = records(folder)
    assert len(after) == 3 and after[0] == before[0]
    assert after[1]["sha256"] == before[1]["sha256"] and after[1] != before[1]
    (folder / "00007.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"00007\.png is not of this run"):
        sample(folder, *SMALL, "--resume")


def test_prompts_may_come_with_other_arguments(tmp_path):
    from PIL import Image

    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "calls.jsonl").write_text(
        '{"prompt": "a red apple", "true_cfg_scale": 2, "negative_prompt": "green"}\n'
        '{"prompt": "a red apple", "image": "red.png"}\n'
    )
    (tmp_path / "calls.tsv").write_text(
        "prompt\ttrue_cfg_scale\tnegative_prompt\timage\na red apple\t2\tgreen\t\n"
        "a red apple\t\t\tred.png\n"
    )
    calls = read_calls(tmp_path / "calls.jsonl")
    assert calls == read_calls(tmp_path / "calls.tsv")
    assert [text_of(call) for call in calls] == ["a red apple"] * 2
    assert opened(calls[1])["image"].getpixel((0, 0)) == (255, 0, 0)
    guided = tmp_path / "one.tsv"
    guided.write_text("\n".join((tmp_path / "calls.tsv").read_text().splitlines()[:2]) + "\n")
    run("sample", "--model", MODEL, "--prompts", guided, "--threads", 1, "--out", tmp_path / "g",
        *SMALL)  # fmt: skip
    sample(tmp_path / "plain", *SMALL, prompts=1)
    assert records(tmp_path / "g")[0]["sha256"] != records(tmp_path / "plain")[0]["sha256"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a"', r"a.jsonl, line 1: not JSON"),
        ("a.jsonl", '["a"]\n', r"line 1: write the arguments of one call"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "a"}\n', "line 2: the same prompt as line 1"),
        ("a.jsonl", '{"prompt": "a", "image": "b.png"}\n', "line 1: no such image: .*b.png"),
        ("a.tsv", "prompt\tprompt\na\tb\n", "line 1: the names of the arguments must differ"),
        ("a.tsv", "prompt\timage\na\n", "line 2: 1 cells, line 1 names 2"),
        ("a.tsv", "prompt\n", "no prompts"),
    ],
)
def test_a_faulty_file_of_calls_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_calls(tmp_path / name)


def test_show_says_what_a_plan_is(made, capsys):
    plan = Plan.load(made / "plan.safetensors")
    run("show", made / "plan.safetensors")
    said = capsys.readouterr().out
    steps = " ".join(map(str, plan.full_steps))
    for line in (
        "method     EigenCache-design", f"full steps 4: {steps}", "tap        output",
        f"model      {plan.model}", f"hash       {plan.digest}", "error of latents 0.",
        '"num_inference_steps": 8', "dtype      float32", "FlowMatchEulerDiscreteScheduler",
    ):  # fmt: skip
        assert line in said
    assert repr(plan) == "Plan(4 of 8 steps full, tap='output', method='EigenCache-design')"
    with pytest.raises(SystemExit, match="its format is 'eigencache-kernel-2'"):
        run("show", made / "kernel.safetensors")


@pytest.mark.parametrize(
    "line",
    [
        ["sample", "--model", "x", "--prompts", EVALUATION, "--out", "x", "--method", "HiCache"],
        [
            "sample",
            "--model",
            EMBEDDED,
            "--prompts",
            EVALUATION,
            "--out",
            "x",
            "--steps",
            50,
            "--full-steps",
            51,
        ],
        ["calibrate", "--model", "x", "--prompts", "none.txt", "--out", "x"],
        ["plan", "--kernel", "KERNEL", "--full-steps", 99, "--out", "x"],
        ["score", "--reference", "none", "--images", "a=b", "--prompts", EVALUATION, "--out", "x"],
        ["show", "KERNEL"],
    ],
    ids=lambda line: line[0],
)
def test_mistakes_are_found_before_torch_is_imported(made, line):
    line = [str({"KERNEL": made / "kernel.safetensors"}.get(part, part)) for part in line]
    command = [sys.executable, "-X", "importtime", "-m", "eigencache.cli", *line]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "eigencache: " in done.stderr
    assert not any(f"| {name}\n" in done.stderr for name in ("torch", "diffusers"))


# ---- What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--kernel", "none", "--full-steps", 4], "none: no such file"),
        (["plan", "--full-steps", 4, "--method", "Eigen"], "no method 'Eigen'; there are FORA"),
        (["plan", "--full-steps", 9], "--full-steps 9: the kernel has 8 steps only"),
        (["plan", "--full-steps", 4, "--option", "order=1"], r"unknown options \['order'\]"),
        (["plan", "--full-steps", 4, "--option", "window=x"], "window must be a whole number"),
        (["plan", "--full-steps", 4, "--method", "EigenCache"], "state --model and --prompts"),
        (["plan", "--full-steps", 4, "--method", "EigenCache-published"], "calibrate one of that"),
        (["plan", "--psnr", 50, "--method", "FORA"], "state --model and --prompts"),
        (["plan", "--psnr", -50, "--method", "FORA"], "psnr must be a finite number"),
        (
            [
                "plan",
                "--psnr",
                50,
                "--model",
                EMBEDDED,
                "--prompts",
                EVALUATION,
                "--num-prompts",
                1,
            ],
            "state two prompts or more",
        ),
        (["calibrate", "--model", ROOT], "model_index.json.*FLUX.1-dev.*snakemake models/NAME"),
        (["calibrate", "--prompts", "none.txt"], "no such prompt file"),
        (["calibrate", "--option", "runs=9"], "runs=9: there are only 1 prompts"),
        (["sample", "--plan", "PLAN", "--steps", 9], "made for 8 steps, called with 9"),
        (["sample", "--plan", "PLAN", "--height", 96], "the sampler is at"),
        (["sample", "--plan", "KERNEL"], "its format is 'eigencache-kernel-2'"),
        (["sample", "--arguments", '{"hight": 64}'], "no argument 'hight'; did you mean 'height'"),
        (["sample", "--arguments", "[1]"], "--arguments: write a JSON object"),
        (["sample", "--arguments", "{"], "--arguments: not JSON"),
        (["sample", "--arguments", '{"height": 64}', "--height", 64], "states height too"),
        (["sample", "--interval", 4], "--interval: state the --method too"),
        (["sample", "--full-steps", 99, "--steps", 50], "--full-steps 99: .* only 50 steps"),
        (["sample", "--full-steps", 99], "--full-steps 99: an image takes only 28 steps"),
        (["sample", "--full-steps", 99, "--method", "FORA"], "--full-steps 99: .* only 28 steps"),
        (["sample", "--full-steps", 4, "--tap", "hidden"], "--tap: state the --method too"),
        (["sample", "--full-steps", 4, "--plan", "PLAN"], "either --plan or --full-steps$"),
        (["sample", "--full-steps", 4, "--kernel", "KERNEL"], "--full-steps: state the --method"),
        (["sample", "--full-steps", 4, "--anchor-device", "foo"], "device foo: no such.*is cpu"),
        (["sample", "--full-steps", 4, "--anchor-device", "cuda:9"], "device cuda:9: no such"),
        (["sample", "--full-steps", 4, "--anchor-device", "meta"], "device meta: no such"),
        (["sample", "--anchor-device", "cpu"], "so nothing is cached"),
        (["sample", "--psnr", 40, "--plan", "PLAN"], "--psnr makes a plan of its own"),
        (["sample", "--psnr", 40, "--method", "FORA"], "eigencache plan --psnr"),
        (["sample", "--psnr", -1], "psnr must be a finite number above 0"),
        (["sample", "--method", "FORA"], "state either --full-steps or --interval"),
        (["sample", "--method", "EigenCache-design", "--interval", 2], "has no interval"),
        (["sample", "--method", "FORA", "--plan", "PLAN"], "either --plan or --method"),
        (["sample", "--method", "HiCache", "--interval", 2, "--option", "scale=-1"], "scale must"),
        (["sample", "--method", "EigenCache-design", "--full-steps", 4], "needs a kernel"),
        (["sample", "--method", "EigenCache", "--full-steps", 4], "eigencache plan"),
        (["sample", "--gpus", "0,0"], "write different devices"),
        (["sample", "--out", EMBEDDED / "model_index.json"], "is a file, not a folder"),
        (["sample", "--out", EMBEDDED], "holds images already, 1 of them"),
        (["sample", "--pipeline", "FluxFillPipelin"], "did you mean 'FluxFillPipeline'"),
        (["calibrate", "--out", EMBEDDED], "it is a folder; name a file"),
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calibrate --num-prompts 0", "argument --num-prompts: must be at least 1, got 0"),
        ("calibrate --steps 0", "argument --steps: must be at least 1, got 0"),
        ("calibrate --seed -1", "argument --seed: must be at least 0, got -1"),
        ("calibrate --guidance-scale nan", "argument --guidance-scale: must be at least 0"),
        ("sample --threads 0", "argument --threads: must be at least 1, got 0"),
        ("sample --full-steps x", "argument --full-steps: invalid int value: 'x'"),
        ("sample --full-steps 4 --interval 2", "not allowed with argument --full-steps"),
        ("sample --psnr 40 --interval 4", "not allowed with argument --psnr"),
        ("plan --full-steps 0", "argument --full-steps: must be at least 1, got 0"),
        ("score --threads 0", "argument --threads: must be at least 1, got 0"),
    ],
)
def test_a_faulty_flag_is_named(line, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*line.split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


# ---- What it says


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as exit:
        run(name, "--help")
    assert exit.value.code == 0
    said = capsys.readouterr().out
    module = cli.module_of(name)
    told, examples = module.__doc__.split("\nexamples:\n")
    assert told.strip() in said and f"examples:\n{examples}".strip() in said
    examples = examples.replace("\\\n", " ").splitlines()
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

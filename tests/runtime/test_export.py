"""Plans for use without EigenCache: the scheduler's file, where it is used, what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from helpers import ROOT, arguments_of, flow_timesteps, program, tiny_pipeline

import eigencache
from eigencache import cli
from eigencache.export import _loaded, computation_mask
from eigencache.plan import PlanWarning
from eigencache.predictors import Reuse, Taylor
from eigencache.runtime import forecast
from eigencache.schedules import Steps

CALL = {"num_inference_steps": 8, "height": 16, "width": 16, "output_type": "latent"}
# Run where EigenCache cannot be imported.
ALONE = """
import sys
sys.modules["eigencache"] = None
sys.path.insert(0, sys.argv[1])
import torch
from diffusers import FluxPipeline
from planned_scheduler import PlannedScheduler
torch.set_num_threads(1)
made = torch.load(sys.argv[3], weights_only=True)
scheduler = PlannedScheduler.from_pretrained(sys.argv[1])
texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
pipe = FluxPipeline.from_pretrained(sys.argv[2], scheduler=scheduler, use_safetensors=True, **texts)
latents = pipe(**made, generator=torch.Generator().manual_seed(0)).images
torch.save(latents, sys.argv[3])
print(len(pipe.scheduler.timesteps), type(pipe.scheduler).__mro__[1].__name__)
"""


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def plan(pipe):
    pipe(**CALL, **arguments_of(0))
    made = eigencache.make_plan(Steps([0, 1, 4, 6]), Taylor(order=1), pipe.scheduler.timesteps)
    return replace(made, scheduler="FlowMatchEulerDiscreteScheduler")


def sampled(pipe, **changes):
    noise = torch.Generator().manual_seed(0)
    return pipe(**CALL | arguments_of(1) | changes, generator=noise).images


@pytest.mark.slow
def test_the_file_works_where_eigencache_cannot_be_imported(pipe, plan, tmp_path):
    plan.export_scheduler(tmp_path / "scheduler", pipe.scheduler)
    pipe.save_pretrained(tmp_path / "model")
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    loaded = FluxPipeline.from_pretrained(tmp_path / "model", use_safetensors=True, **texts)
    with eigencache.cached(loaded, plan):
        expected = sampled(loaded)
    torch.save(CALL | arguments_of(1), tmp_path / "made.pt")
    folders = (tmp_path / name for name in ("scheduler", "model", "made.pt"))
    done = program("-c", ALONE, *map(str, folders), cwd=tmp_path)
    assert done.stdout == "4 FlowMatchEulerDiscreteScheduler\n", done.stderr
    assert torch.equal(torch.load(tmp_path / "made.pt", weights_only=True), expected)
    text = (tmp_path / "scheduler/planned_scheduler.py").read_text()
    assert "import eigencache" not in text and "from eigencache" not in text


def test_a_pipeline_may_be_saved_and_loaded_with_it(pipe, plan, tmp_path):
    own = _loaded(plan.export_scheduler(tmp_path)).from_config(pipe.scheduler.config)
    own.save_pretrained(tmp_path)
    again = type(own).from_pretrained(tmp_path)
    assert dict(again.config)["use_dynamic_shifting"] is True
    plain = FlowMatchEulerDiscreteScheduler.from_config(own.config)  # and back
    assert plain.config["use_dynamic_shifting"] is True


@pytest.mark.parametrize("changes", [{"num_inference_steps": 9}, {"height": 64}], ids=str)
def test_other_steps_are_refused(plan, tmp_path, changes):
    pipe = tiny_pipeline()
    own = _loaded(plan.export_scheduler(tmp_path))
    pipe.scheduler = own.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"for 8 steps at timesteps .* the sampler does not take"):
        sampled(pipe, **changes)
    sampled(pipe)  # and it goes on with what it was made for


def test_its_progress_and_callbacks_are_of_full_steps(plan, tmp_path):
    pipe, seen = tiny_pipeline(), []
    own = _loaded(plan.export_scheduler(tmp_path))
    pipe.scheduler = own.from_config(pipe.scheduler.config)
    sampled(pipe, callback_on_step_end=lambda pipe, i, t, kept: seen.append(float(t)) or kept)
    np.testing.assert_allclose(seen, plan.timesteps[list(plan.full_steps)])
    assert pipe.num_timesteps == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forecasts_are_those_of_the_runtime(plan, tmp_path, dtype):
    own = _loaded(plan.export_scheduler(tmp_path))()
    draw = torch.Generator().manual_seed(0)
    own._anchors = {a: torch.randn(2, 30, generator=draw).to(dtype) for a in (0, 1, 4)}
    weights = {0: 0.3, 1: -1.7, 4: 2.4}
    expected = forecast([(own._anchors[a], weight) for a, weight in weights.items()])
    assert torch.equal(own._forecast(weights), expected) and expected.dtype == dtype


def test_anchors_are_held_no_longer_than_they_are_used(plan, tmp_path):
    pipe, held = tiny_pipeline(), []
    own = _loaded(plan.export_scheduler(tmp_path))
    pipe.scheduler = own.from_config(pipe.scheduler.config)
    sampled(
        pipe,
        callback_on_step_end=lambda pipe, *_: held.append([*pipe.scheduler._anchors]) or {},
    )
    assert held == [[0], [1], [4], []]


def test_what_no_scheduler_can_express_is_refused(plan, tmp_path):
    timesteps = flow_timesteps(4)
    inner = eigencache.make_plan(Steps([0, 2]), Reuse(), timesteps, tap="blocks")
    for refused, message in (
        (inner, "at tap 'blocks' works inside the network"),
        (replace(plan, scheduler=None), "does not say which scheduler"),
        (replace(plan, scheduler="FluxPipeline"), "has no scheduler 'FluxPipeline'"),
        (replace(plan, scheduler="x\nimport os"), "has no scheduler"),
        (replace(plan, scheduler="CogVideoXDPMScheduler"), "no scheduler can express the plan"),
    ):
        with pytest.raises(eigencache.PlanError, match=message):
            refused.export_scheduler(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_text_of_a_plan_gets_into_the_file(plan, tmp_path):
    evil = '"""\nraise SystemExit\n"""'
    stated = replace(
        plan,
        method=evil,
        pipeline=evil,
        source={"x": evil},
        arguments={"num_inference_steps": evil},
    )
    path = stated.export_scheduler(tmp_path)
    assert "SystemExit" not in path.read_text() and _loaded(path)


def test_diffusers_own_switch_takes_no_config_of_others(pipe, plan):
    """docs/sharing.md says why; should it ever take one, a plan can be given to it."""
    with pytest.raises(ValueError, match="is not supported"):
        pipe.transformer.enable_cache(plan)
    assert not pipe.transformer.is_cache_enabled


def run(*line):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eigencache", *map(str, line)])
        cli.main()


def test_what_was_not_compared_is_said(pipe, plan, tmp_path):
    with pytest.warns(PlanWarning, match="was not compared with the plan"):
        path = plan.export_scheduler(tmp_path / "bare", pipe.scheduler)
    assert "Not checked: no result of this scheduler" in path.read_text()
    call = CALL | arguments_of(1)
    with pytest.raises(ValueError, match="height: state the pipeline to call with it, pipe="):
        plan.export_scheduler(tmp_path, height=16)
    with pytest.raises(ValueError, match="output_type: EigenCache sets it itself"):
        plan.export_scheduler(tmp_path / "none", pipe=pipe, **call)
    with pytest.raises(ValueError, match="a scheduler or a pipeline that has one, not both"):
        plan.export_scheduler(tmp_path / "none", pipe.scheduler, pipe=pipe, **call)
    del call["output_type"]
    with pytest.raises(eigencache.PlanError, match="made for 8 steps, the sampler takes 9"):
        plan.export_scheduler(tmp_path / "none", pipe=pipe, **call | {"num_inference_steps": 9})
    assert not (tmp_path / "none").exists()
    before = pipe.scheduler
    path = plan.export_scheduler(tmp_path / "checked", pipe=pipe, **call)
    assert pipe.scheduler is before and (tmp_path / "checked/scheduler_config.json").exists()
    assert "Checked: one result of FluxPipeline by this scheduler" in path.read_text()
    assert "They are the same to the last bit." in path.read_text()


def test_the_command_writes_the_file_the_config_and_the_mask(
    pipe, plan, tiny_model, tmp_path, capsys
):
    plan.save(tmp_path / "plan.safetensors")
    run("export", "--plan", tmp_path / "plan.safetensors", "--out", tmp_path / "bare")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["planned_scheduler.py"]
    run(
        "export", "--plan", tmp_path / "plan.safetensors", "--model", tiny_model, "--out",
        tmp_path / "whole",
    )  # fmt: skip
    config = json.loads((tmp_path / "whole/scheduler_config.json").read_text())
    theirs = json.loads((tiny_model / "scheduler/scheduler_config.json").read_text())
    assert config.pop("_class_name") == "PlannedScheduler"
    assert {k: v for k, v in theirs.items() if k != "_class_name"}.items() <= config.items()
    with pytest.raises(SystemExit, match="--steps: nothing is sampled without --prompts"):
        run("export", "--plan", tmp_path / "plan.safetensors", "--out", tmp_path, "--steps", 8)
    with pytest.raises(SystemExit, match="--prompts: state the --model"):
        run("export", "--plan", tmp_path / "plan.safetensors", "--out", tmp_path, "--prompts", "x")
    capsys.readouterr()
    run("export", "--plan", tmp_path / "plan.safetensors", "--mask")
    assert json.loads(capsys.readouterr().out) == [1, 1, 0, 0, 1, 0, 1, 0]


@pytest.mark.slow
def test_the_command_compares_one_run(tiny_model, tmp_path):
    prompts = ROOT / "data/prompts/emoji-calibration.txt"
    line = ("--model", tiny_model, "--prompts", prompts, "--num-prompts", 1, "--steps", 6)
    size = ("--height", 16, "--width", 16, "--max-sequence-length", 24)
    kernel, plan = tmp_path / "kernel.safetensors", tmp_path / "plan.safetensors"
    run("calibrate", *line, *size, "--method", "TaylorSeer", "--tap", "output", "--out", kernel)
    taylor = ("--method", "TaylorSeer", "--tap", "output", "--full-steps", 3)
    run("plan", "--kernel", kernel, *taylor, "--out", plan)
    line = line[:-2]  # the plan knows the steps and the size
    run("export", "--plan", plan, *line, "--out", tmp_path / "whole")
    text = (tmp_path / "whole/planned_scheduler.py").read_text()
    assert "Checked: one result of FluxPipeline" in text and "to the last bit" in text


def test_a_mask_says_no_steps_of_single_streams(plan):
    assert computation_mask(plan) == [1, 1, 0, 0, 1, 0, 1, 0]
    both = np.stack([plan.weights, plan.weights])
    streams = {"tap": "modules", "streams": ("a", "b")}
    assert computation_mask(replace(plan, weights=both, **streams)) == computation_mask(plan)
    both[1, 2] = 0
    with pytest.raises(eigencache.PlanError, match="full steps of its own"):
        computation_mask(replace(plan, weights=both, **streams))

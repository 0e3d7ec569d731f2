"""Exported schedulers on every pipeline of the zoo: they sample as the plan, or are refused."""

import importlib.util
import inspect

import diffusers
import numpy as np
import pytest
import torch
from zoo import ZOO
from zoo.runs import Measured, check_same, counting

import eigencache

# The scheduler's file is never written.
NO_FILE = {"cogvideox-dpm": "CogVideoXDPMScheduler.step takes other arguments"}
_TURNS = "does not take each step of this scheduler once"  # strength counts the shortened steps
# The first full step raises, in the export's own run and later.
RAISES = {
    **dict.fromkeys(
        (
            "flux-img2img", "flux-inpaint", "flux-kontext-inpaint", "flux-control-img2img",
            "flux-controlnet-inpaint", "qwen-img2img", "qwen-inpaint", "z-image-img2img",
            "chroma-img2img", "cosmos", "cosmos-video-to-world",
        ),
        _TURNS,
    ),
    "bria": "no attribute 'scale_model_input'",  # it asks for the very class of its scheduler
}  # fmt: skip
# The pipeline has changed its scheduler's config, and diffusers' `from_config` takes that back.
CHANGED = {"sd15": {"steps_offset": 1}, "sd15-pndm": {"steps_offset": 1}}
# What the pipeline does at a step depends on the number of steps it sees (layers that are skipped),
# on the outputs of the last step (guidance with momentum), or on the last sigma but one. The export
# compares one run with the plan's, and finds out.
DIFFERENT = ("sd35-skip-layers", "hunyuan-image", "motif-video", "cosmos2")


def planned(path):
    """Return the class in an exported file."""
    spec = importlib.util.spec_from_file_location("planned_scheduler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlannedScheduler


def random_plan(measured):
    """Return a plan of one case with random weights over up to three full steps."""
    full, draw = measured.full, np.random.default_rng(0)
    weights = np.zeros((len(full), len(full)))
    for step in np.flatnonzero(~full):
        past = np.flatnonzero(full[:step])[-3:]
        drawn = draw.normal(scale=0.2, size=len(past))
        weights[step, past] = [*drawn[:-1], 1 - drawn[:-1].sum()]
    name = type(measured.case.pipe.scheduler).__name__
    return eigencache.Plan(full, weights, measured.plain.timesteps, "output", scheduler=name)


def test_an_exported_scheduler_samples_as_its_plan(measured, tmp_path, monkeypatch):
    case, name, scheduler = measured.case, measured.case.name, measured.case.pipe.scheduler
    plan = random_plan(measured)
    if name in NO_FILE:
        with pytest.raises(eigencache.PlanError, match=NO_FILE[name]):
            plan.export_scheduler(tmp_path)
        assert not [*tmp_path.iterdir()]
        return
    with eigencache.cached(case.pipe, plan):
        expected = case(0)
    own = planned(plan.export_scheduler(tmp_path / "unchecked"))
    for method in ("step", "set_timesteps"):  # pipelines ask what they take
        theirs = getattr(type(scheduler), method)
        assert inspect.signature(getattr(own, method)) == inspect.signature(theirs)
    assert issubclass(own, getattr(diffusers, plan.scheduler))
    refused = RAISES.get(name) or (name in DIFFERENT and "does not do what the plan does")
    if name in CHANGED:
        with monkeypatch.context() as patch:
            patch.setattr(case.pipe, "scheduler", own.from_config(scheduler.config))
            with pytest.raises(ValueError, match="which the sampler does not take"):
                case(0)
        refused = "which the sampler does not take"
    own_to_a_run = ("generator", "output_type")
    call = {name: value for name, value in case.arguments(0).items() if name not in own_to_a_run}
    if refused:
        with pytest.raises(eigencache.PlanError, match=refused):
            plan.export_scheduler(tmp_path / "checked", pipe=case.pipe, **call)
        assert not (tmp_path / "checked").exists()
    else:
        path = plan.export_scheduler(tmp_path / "checked", pipe=case.pipe, **call)
        assert "the same to the last bit" in path.read_text()
    assert case.pipe.scheduler is scheduler
    exported = own.from_config(scheduler.config, **CHANGED.get(name, {}))
    monkeypatch.setattr(case.pipe, "scheduler", exported)
    if name in RAISES:
        with pytest.raises((ValueError, AttributeError), match=RAISES[name]):
            case(0)
        return
    with counting(case.denoisers()) as calls:
        result = case(0)
    if name in DIFFERENT:
        with pytest.raises(AssertionError, match="differs by"):
            check_same(result, expected)
        return
    check_same(result, expected)
    assert calls == sum((measured.plain.calls[s] for s in plan.full_steps), start=type(calls)())
    check_same(case(0), expected)  # nothing of the first image is left


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flux", "the same to the last bit"),
        ("mochi", "Rounding alone makes them differ, by 0.0"),  # it rounds the latents itself
        ("sd35-skip-layers", None),
    ],
)
def test_rounding_in_half_precision_is_told_from_what_a_pipeline_decides(name, told, tmp_path):
    case = ZOO[name]()
    plan = random_plan(Measured(case))
    case.pipe.to(torch.bfloat16)
    call = {
        key: value.to(torch.bfloat16) if isinstance(value, torch.Tensor) else value
        for key, value in case.arguments(0).items()
        if key not in ("generator", "output_type")
    }
    if told is None:
        with pytest.raises(eigencache.PlanError, match="which rounding does not explain"):
            plan.export_scheduler(tmp_path, pipe=case.pipe, **call)
        return
    assert told in plan.export_scheduler(tmp_path, pipe=case.pipe, **call).read_text()

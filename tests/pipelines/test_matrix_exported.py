"""Exported schedulers on every pipeline of the zoo: as a plan samples, or else known not to."""

import importlib.util
import inspect

import diffusers
import numpy as np
import pytest
from zoo.runs import check_same, counting

import eigencache

# The scheduler's file is never written.
NO_FILE = {"cogvideox-dpm": "CogVideoXDPMScheduler.step takes other arguments"}
_TURNS = "does not take each step of this scheduler once"  # strength counts the shortened steps
# The first full step raises.
REFUSED = {
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
# What the pipeline does at a step depends on the number of steps it sees (ControlNets that end half
# way, layers that are skipped), on the outputs of the last step (guidance with momentum), or on the
# last sigma but one.
DIFFERENT = (
    "flux-controlnet-first-half", "sdxl-controlnet-first-half", "sd35-skip-layers",
    "hunyuan-image", "motif-video", "cosmos2",
)  # fmt: skip


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
    own = planned(plan.export_scheduler(tmp_path))
    for method in ("step", "set_timesteps"):  # pipelines ask what they take
        theirs = getattr(type(scheduler), method)
        assert inspect.signature(getattr(own, method)) == inspect.signature(theirs)
    assert issubclass(own, getattr(diffusers, plan.scheduler))
    if name in CHANGED:
        monkeypatch.setattr(case.pipe, "scheduler", own.from_config(scheduler.config))
        with pytest.raises(ValueError, match="which the sampler does not take"):
            case(0)
    exported = own.from_config(scheduler.config, **CHANGED.get(name, {}))
    monkeypatch.setattr(case.pipe, "scheduler", exported)
    if name in REFUSED:
        with pytest.raises((ValueError, AttributeError), match=REFUSED[name]):
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

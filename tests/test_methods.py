"""The table of methods: each makes a valid plan to the step, and refuses what does not fit it."""

import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import flow_timesteps, kernel_of, random_trajectories

from eigencache.methods import METHODS, fill, make_plan
from eigencache.plan import BASELINES, TAPS, PlanError
from eigencache.predictors import Kriging, Reuse, Taylor
from eigencache.schedules import Interval, Optimal, Steps

TIMESTEPS = flow_timesteps(50)
RUNS = random_trajectories(TIMESTEPS, runs=3, size=8)
STREAMS = {"output": ("output",), "modules": ("blocks.0.attn", "blocks.0.ff")}
NEED_KERNEL = [name for name, method in METHODS.items() if method.needs_kernel]


def kernel_for(name, timesteps=TIMESTEPS, **changes):
    """Return a kernel of the kind that a method wants."""
    method = METHODS[name]
    kept = {
        "tap": method.tap,
        "features": method.features,
        "normalisation": method.normalisation,
        "model": "Flux-1",
        "source": {"prompts": "3"},
    }
    return kernel_of(RUNS[:, : len(timesteps)], timesteps, STREAMS[method.tap], **kept | changes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_budget(name):
    method = METHODS[name]
    plan = method.plan(9, TIMESTEPS, kernel_for(name) if method.needs_kernel else None)
    assert len(plan) == 50
    assert len(plan.full_steps) == 9
    assert plan.tap == method.tap
    assert (plan.weights[..., ~plan.full, :] != 0).any(-1).all()  # every skipped step is forecast


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_cited_and_at_a_known_tap(name):
    assert METHODS[name].cite
    assert METHODS[name].tap in TAPS
    assert name not in BASELINES


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_lists_the_allowed(name):
    allowed = re.escape(f"unknown options ['wnidow']; allowed are {list(METHODS[name].options)}")
    with pytest.raises(ValueError, match=allowed):
        METHODS[name].plan(9, TIMESTEPS, wnidow=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FORA", ("first",)),
        ("TaylorSeer", ("first", "order")),
        ("HiCache", ("first", "order", "scale")),
        ("EigenCache", ("jitter", "ordinary", "window")),
    ],
)
def test_options_are_those_of_schedule_and_predictor(name, options):
    assert METHODS[name].options == options


@pytest.mark.parametrize(
    ("name", "options", "schedule", "predictor"),
    [
        ("TaylorSeer", {"order": 2, "first": 1}, Interval(9, first=1), Taylor(2)),
        ("FORA", {}, Interval(9), Reuse()),
        ("EigenCache-published", {}, Interval(9), Kriging(3, 1e-3)),
        ("EigenCache", {}, Optimal(9), Kriging(2, 1e-6, ordinary=True)),
        (
            "EigenCache",
            {"jitter": 0.5, "window": 3, "ordinary": False},
            Optimal(9),
            Kriging(3, 0.5),
        ),
    ],
)
def test_options_reach_the_part_that_reads_them(name, options, schedule, predictor):
    assert METHODS[name].parts(9, **options) == (schedule, predictor)


@pytest.mark.parametrize("name", NEED_KERNEL)
def test_a_missing_kernel_is_asked_for(name):
    with pytest.raises(PlanError, match="needs a kernel: calibrate"):
        METHODS[name].plan(9, TIMESTEPS)


@pytest.mark.parametrize("name", NEED_KERNEL)
def test_a_kernel_of_another_tap_is_refused(name):
    other = {"output": "modules", "modules": "output"}[METHODS[name].tap]
    with pytest.raises(PlanError, match=f"at tap '{other}', not at '{METHODS[name].tap}'"):
        METHODS[name].plan(9, TIMESTEPS, kernel_for(name, tap=other))


@pytest.mark.parametrize("name", NEED_KERNEL)
@pytest.mark.parametrize("timesteps", [flow_timesteps(50, shift=2.0), flow_timesteps(40)])
def test_a_kernel_for_other_timesteps_is_refused(name, timesteps):
    with pytest.raises(PlanError, match="other timesteps"):
        METHODS[name].plan(9, TIMESTEPS, kernel_for(name, timesteps))


def test_each_stream_is_forecast_by_its_own_kernel():
    kernel = kernel_for("EigenCache-published")
    plan = METHODS["EigenCache-published"].plan(9, TIMESTEPS, kernel)
    assert plan.streams == STREAMS["modules"]
    first, second = map(plan.weights_of, plan.streams)
    assert not np.allclose(first, second)
    for stream in plan.streams:
        alone = fill(plan.full, Kriging(3, 1e-3), TIMESTEPS, kernel.matrix(stream))
        assert np.array_equal(plan.weights_of(stream), alone)


def test_weights_that_need_no_kernel_serve_every_stream():
    plan = METHODS["TaylorSeer"].plan(9, TIMESTEPS)
    assert plan.streams == ()
    assert plan.weights.ndim == 2


def test_fill_gives_each_skipped_step_its_predictor_over_the_last_full_steps():
    full = np.isin(np.arange(8), [0, 1, 3, 6])
    weights = fill(full, Taylor(1), TIMESTEPS[:8], None)
    assert np.array_equal(np.flatnonzero(weights.any(1)), [2, 4, 5, 7])
    assert np.allclose(weights[2, [0, 1]], [-1, 2])
    assert np.allclose(weights[5, [1, 3]], [-1, 2])
    assert np.allclose(weights[7, [3, 6]], [-1 / 3, 4 / 3])
    assert np.count_nonzero(weights) == 8


@pytest.mark.parametrize("name", NEED_KERNEL)
def test_a_plan_from_a_kernel_belongs_to_its_model_and_says_so(name):
    plan = METHODS[name].plan(9, TIMESTEPS, kernel_for(name))
    assert plan.model == "Flux-1"
    assert "3 runs" in plan.source["kernel"]
    assert plan.source["kernel prompts"] == "3"


def test_a_plan_without_need_of_a_kernel_serves_any_model():
    plan = METHODS["TaylorSeer"].plan(9, TIMESTEPS, kernel_for("EigenCache"))
    assert plan.model is None
    assert plan.source["predictor"] == str(Taylor(1))


@pytest.mark.parametrize(("tap", "expected"), [(None, "output"), ("modules", "modules")])
def test_a_plan_without_a_kernel_is_at_the_tap_asked_for(tap, expected):
    assert make_plan(Steps([0, 1]), Reuse(), TIMESTEPS, tap=tap).tap == expected


def test_a_plan_is_at_the_tap_of_its_kernel():
    kernel = kernel_for("EigenCache-published")
    assert make_plan(Steps([0, 1]), Kriging(), TIMESTEPS, kernel).tap == "modules"


def test_planning_does_not_import_torch():
    code = "import sys, eigencache.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

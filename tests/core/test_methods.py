"""The table of methods: each makes a valid plan to the step, and refuses what does not fit it."""

import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.aim import Aim
from eigencache.closed_loop import ClosedLoop
from eigencache.design import fill
from eigencache.kernel import KernelError, KernelUse
from eigencache.methods import METHODS, Gate, holding, make_plan
from eigencache.plan import BASELINES, TAPS, PlanError
from eigencache.predictors import (
    Chebyshev,
    HiCache,
    Kriging,
    Newton,
    Reuse,
    Taylor,
    TaylorScaled,
)
from eigencache.schedules import Even, Greedy, Interval, Optimal, Steps, Variance
from eigencache.tokens import ClusCa, ToCa

TIMESTEPS = flow_timesteps(50)
RUNS = random_trajectories(TIMESTEPS, runs=3, size=8)
STREAMS = {"output": ("output",), "modules": ("blocks.0.attn", "blocks.0.ff")}
NEED_KERNEL = [name for name, method in METHODS.items() if method.needs_kernel]


def kernel_for(name, timesteps=TIMESTEPS, **changes):
    """Return a kernel of the kind that a method wants."""
    method = METHODS[name]
    use = method.parts(9).use or KernelUse()
    kept = {
        "tap": method.tap,
        "features": use.features,
        "normalisation": use.normalisation,
        "model": "Flux-1",
        "source": {"prompts": "3"},
    }
    if method.tap == "output":
        kept["responses"] = np.outer([1, -2, 9], np.ones(len(timesteps)))
    return kernel_of(RUNS[:, : len(timesteps)], timesteps, STREAMS[method.tap], **kept | changes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_budget(name):
    method = METHODS[name]
    plan = method.open_loop(9, TIMESTEPS, kernel_for(name) if method.needs_kernel else None)
    assert len(plan) == 50
    assert len(plan.full_steps) == 9
    assert plan.tap == method.tap
    forecast = (plan.weights[..., ~plan.full, :] != 0).any(-1)
    assert np.atleast_2d(forecast).any(0).all()  # at every skipped step, at least one stream is


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_cited_and_at_a_known_tap(name):
    assert METHODS[name].cite
    assert METHODS[name].tap in TAPS
    assert name not in BASELINES


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_lists_the_allowed(name):
    allowed = re.escape(f"unknown options ['wnidow']; allowed are {list(METHODS[name].options)}")
    with pytest.raises(ValueError, match=allowed):
        METHODS[name].open_loop(9, TIMESTEPS, wnidow=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FORA", ("first",)),
        ("TaylorSeer", ("first", "order")),
        ("HiCache", ("first", "order", "scale")),
        ("Delta-DiT", ("first", "gate")),
        ("ClusCa", ("clusters", "first", "iterations", "order", "per_cluster", "weight")),
        ("Spectrum", ("degree", "first", "ridge")),
        (
            "EigenCache-variance",
            ("features", "jitter", "normalisation", "ordinary", "phases", "rank", "runs", "shared",
             "smooth", "stream_weights", "window"),
        ),
        (
            "EigenCache",
            ("anchors", "batch", "features", "final", "held_out", "jitter", "near",
             "normalisation", "ordinary", "phases", "rank", "reach", "response", "ridge", "rounds",
             "runs", "shared", "smooth", "sweeps", "trust", "window"),
        ),
    ],
)  # fmt: skip
def test_options_are_those_of_the_parts(name, options):
    assert METHODS[name].options == options


@pytest.mark.parametrize(
    ("name", "options", "schedule", "predictor"),
    [
        ("TaylorSeer", {"order": 2, "first": 1}, Interval(9, first=1), Taylor(2)),
        ("FORA", {}, Interval(9), Reuse()),
        ("EigenCache-published", {}, Interval(9), Kriging(3, 1e-3)),
        ("Taylor-Scaled", {"scale": 0.7}, Interval(9), TaylorScaled(2, 0.7)),
        ("Spectrum", {"degree": 3}, Interval(9), Chebyshev(3)),
        ("L2P", {}, Interval(9), Kriging(None, 1e-8)),
        ("EigenCache-greedy", {"jitter": 0.1}, Greedy(9, 0.1), Kriging(3, 0.1)),
        (
            "EigenCache-variance",
            {"window": None, "stream_weights": {"*.ff": 2}},
            Variance(9, window=None, stream_weights={"*.ff": 2}),
            Kriging(None),
        ),
        ("EigenCache-optimal", {}, Optimal(9), Kriging(2, 1e-6, ordinary=True)),
        (
            "EigenCache-optimal",
            {"jitter": 0.5, "window": 3, "ordinary": False},
            Optimal(9),
            Kriging(3, 0.5),
        ),
    ],
)
def test_options_reach_the_part_that_reads_them(name, options, schedule, predictor):
    assert METHODS[name].parts(9, **options)[:5] == (schedule, predictor, None, None, None)


def test_an_aim_is_a_part_of_two_methods():
    assert [name for name in METHODS if METHODS[name].parts(9).aim] == [
        "EigenCache-design", "EigenCache",
    ]  # fmt: skip
    options = {
        "response": 0.5,
        "final": 2,
        "jitter": 0.1,
        "ordinary": False,
    }
    parts = METHODS["EigenCache-design"].parts(9, **options, window=3)
    assert parts.aim == Aim(**options)
    assert parts.predictor == Kriging(3, 0.1)


@pytest.mark.parametrize(
    ("name", "options", "use"),
    [
        ("TaylorSeer", {}, None),
        ("L2P", {}, KernelUse()),
        ("EigenCache", {}, KernelUse()),
        ("EigenCache", {"rank": 4, "runs": 8}, KernelUse(runs=8, rank=4)),
        ("EigenCache-published", {}, KernelUse("token-mean", "cosine")),
        ("EigenCache-greedy", {"shared": True}, KernelUse("token-mean", "cosine", shared=True)),
        (
            "EigenCache-variance",
            {"features": "full", "smooth": 0.5},
            KernelUse("full", "cosine", smooth=0.5),
        ),
    ],
)
def test_a_method_says_which_kernel_it_wants(name, options, use):
    assert METHODS[name].parts(9, **options).use == use


def test_the_closed_loop_is_a_part_of_eigencache_alone():
    assert [name for name in METHODS if METHODS[name].parts(9).closed_loop] == ["EigenCache"]
    options = {"anchors": 3, "sweeps": 0, "reach": 1, "rounds": 5, "held_out": 2, "batch": 4}
    assert METHODS["EigenCache"].parts(9).closed_loop == ClosedLoop()
    assert METHODS["EigenCache"].parts(9, **options).closed_loop == ClosedLoop(**options)


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("Delta-DiT", {}, (Interval(9), Reuse(), Gate(0.5), None)),
        ("Delta-DiT", {"gate": 0.3, "first": 1}, (Interval(9, first=1), Reuse(), Gate(0.3), None)),
        ("ToCa", {}, (Interval(9), Reuse(), None, ToCa(0.1, 0.25, 0.5, 0.0, 0.6))),
        ("ToCa", {"ratio": 0.3}, (Interval(9), Reuse(), None, ToCa(0.3))),
        ("ClusCa", {}, (Interval(9), Taylor(1), None, ClusCa(16, 1, 0.005))),
        ("ClusCa", {"order": 2, "clusters": 8}, (Interval(9), Taylor(2), None, ClusCa(8))),
        (
            "Hi-ClusCa",
            {"scale": 0.7, "weight": 0.01},
            (Interval(9), HiCache(2, 0.7), None, ClusCa(weight=0.01)),
        ),
    ],
)
def test_a_gate_and_a_rule_are_parts_too(name, options, parts):
    found = METHODS[name].parts(9, **options)
    assert (found.schedule, found.predictor, found.gate, found.refresh) == parts
    plan = METHODS[name].open_loop(9, TIMESTEPS, **options)
    assert plan.refresh == parts[3]
    assert plan.streams == (("front", "back") if parts[2] else ())
    assert plan.source[("gate" if parts[2] else "refresh")] == str(parts[2] or parts[3])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "Delta-DiT",
            {"gate": 2},
            "gate must be a finite number of at least 0 and at most 1, got 2",
        ),
        ("ToCa", {"ratio": 2}, "ratio must be a finite number of at least 0 and at most 1, got 2"),
        ("ClusCa", {"clusters": 0}, "clusters must be a whole number of at least 1, got 0"),
        ("Hi-ClusCa", {"weight": -1}, "weight must be a finite number"),
    ],
)
def test_options_of_a_gate_or_a_rule_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name].parts(9, **options)


@pytest.mark.parametrize(("name", "tap"), [("Delta-DiT", "blocks"), ("ToCa", "output")])
def test_a_gate_or_a_rule_at_another_tap_is_refused(name, tap):
    with pytest.raises(PlanError, match=f"'{tap}'"):
        METHODS[name].open_loop(9, TIMESTEPS, tap=tap)


def test_a_gate_lies_between_the_halves_of_a_kernel():
    kernel = kernel_of(RUNS, TIMESTEPS, ("front", "back"), tap="delta")
    plan = make_plan(Steps([0, 20]), Kriging(), TIMESTEPS, kernel, gate=Gate())
    ungated = make_plan(Steps([0, 20]), Kriging(), TIMESTEPS, kernel)
    assert plan.streams == ungated.streams == ("front", "back")
    assert np.array_equal(plan.weights[1, :25], ungated.weights[1, :25])
    assert np.array_equal(plan.weights[0, 25:], ungated.weights[0, 25:])
    assert not plan.weights[0, :25].any() and not plan.weights[1, 25:].any()


@pytest.mark.parametrize("name", NEED_KERNEL)
def test_a_missing_kernel_is_asked_for(name):
    with pytest.raises(PlanError, match="needs a kernel: calibrate"):
        METHODS[name].open_loop(9, TIMESTEPS)


@pytest.mark.parametrize("name", NEED_KERNEL)
def test_a_kernel_of_another_tap_is_refused(name):
    other = {"output": "modules", "modules": "output"}[METHODS[name].tap]
    with pytest.raises(PlanError, match=f"at tap '{other}', not at '{METHODS[name].tap}'"):
        METHODS[name].open_loop(9, TIMESTEPS, kernel_for(name, tap=other))


@pytest.mark.parametrize("name", NEED_KERNEL)
@pytest.mark.parametrize("timesteps", [flow_timesteps(50, shift=2.0), flow_timesteps(40)])
def test_a_kernel_of_other_timesteps_is_read_at_the_sampler_s(name, timesteps):
    kernel = kernel_for(name, timesteps)
    plan = METHODS[name].open_loop(9, TIMESTEPS, kernel)
    same = METHODS[name].open_loop(9, TIMESTEPS, kernel.at(TIMESTEPS))
    assert np.array_equal(plan.timesteps, TIMESTEPS) and len(plan.full_steps) == 9
    assert np.array_equal(plan.full, same.full) and np.array_equal(plan.weights, same.weights)


def test_a_plan_of_the_closed_loop_needs_a_pipeline():
    with pytest.raises(ValueError, match=r"make them with eigencache\.calibrate, or take Eig"):
        METHODS["EigenCache"].plan(9, TIMESTEPS, kernel_for("EigenCache"))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"EigenCache"}))
def test_other_plans_are_made_in_open_loop(name):
    method = METHODS[name]
    kernel = kernel_for(name) if method.needs_kernel else None
    plan, same = (make(9, TIMESTEPS, kernel) for make in (method.plan, method.open_loop))
    assert is_same(plan, same) and plan.method == same.method == name


def test_a_plan_knows_what_its_kernel_belongs_to():
    belongs = {"arguments": {"guidance_scale": 3.5}, "scheduler": "Euler", "pipeline": "Flux"}
    plan = METHODS["EigenCache-design"].plan(
        9, TIMESTEPS, kernel_for("EigenCache-design", **belongs)
    )
    assert {name: getattr(plan, name) for name in belongs} == belongs
    assert plan.predicted_error > 0 and np.isnan(plan.predicted_psnr)


def test_predictors_by_timestep_are_refused_where_timesteps_repeat():
    """A Heun sampler visits each timestep twice."""
    twice = np.repeat(flow_timesteps(5), 2)
    with pytest.raises(PlanError, match=r"Newton.* has no finite weights for step 2 .*\(Heun\)"):
        make_plan(Steps([0, 1, 4]), Newton(1), twice)
    with pytest.raises(PlanError, match="no finite weights"):
        METHODS["Newton"].plan(5, twice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "full"}, "holds token-mean cosine, the method needs full cosine"),
        ({"normalisation": "second-moment"}, "the method needs token-mean second-moment"),
        ({"runs": 2}, "is of 3 runs, the method needs 2"),
        ({"rank": 51}, "rank must lie between 1 and 50"),
    ],
)
def test_a_kernel_of_another_kind_is_refused(options, message):
    with pytest.raises(KernelError, match=message):
        METHODS["EigenCache-published"].plan(
            9, TIMESTEPS, kernel_for("EigenCache-published"), **options
        )


@pytest.mark.parametrize(
    "name", ["EigenCache-published", "EigenCache-greedy", "EigenCache-optimal"]
)
@pytest.mark.parametrize(
    ("option", "value", "change"),
    [
        ("rank", 3, lambda kernel: kernel.truncated(3)[0]),
        ("smooth", 0.7, lambda kernel: kernel.smoothed(0.7)),
        ("shared", True, lambda kernel: kernel.shared()),
    ],
)
def test_the_plan_is_made_from_the_kernel_as_it_is_used(name, option, value, change):
    method, kernel = METHODS[name], kernel_for(name)
    schedule, predictor, *_ = method.parts(9)
    used = change(kernel)
    plan = method.open_loop(9, TIMESTEPS, kernel, **{option: value})
    assert np.array_equal(plan.full, schedule.full(TIMESTEPS, predictor, used))
    for stream in kernel.streams:
        expected = fill(plan.full, predictor, TIMESTEPS, used.matrix(stream))
        assert np.allclose(plan.weights_of(stream), expected, rtol=1e-9, atol=1e-12)
    assert option in plan.source


def test_a_predictor_with_no_window_draws_on_every_full_step_so_far():
    kernel = kernel_for("L2P")
    plan = METHODS["L2P"].plan(9, TIMESTEPS, kernel)
    for step in np.flatnonzero(~plan.full):
        past = [a for a in plan.full_steps if a < step]
        expected = Kriging(len(past), 1e-8).weights(past, step, TIMESTEPS, kernel.matrix())
        assert np.allclose(plan.weights[step, past], expected)
        assert np.count_nonzero(plan.weights[step]) == len(past)


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
    plan = METHODS[name].open_loop(9, TIMESTEPS, kernel_for(name))
    assert plan.model == "Flux-1"
    assert "3 runs" in plan.source["kernel"]
    assert plan.source["prompts"] == "3"


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


# ---- No option is read by nobody

# Another value than the default of any method. The options of the closed loop act later, in
# `eigencache.closed_loop.refine`: see test_closed_loop.py.
OTHERS = {
    "clusters": 5, "degree": 2, "final": 9.0, "first": 1, "gate": 0.3,
    "iterations": 2, "jitter": 0.3, "near": 0.0, "order": 3, "per_cluster": 2,
    "phases": [20], "rank": 2, "ratio": 0.3, "response": 0.2, "ridge": 2.0, "scale": 0.8,
    "shared": True, "smooth": 0.9, "staleness_weight": 2.0, "stream_weights": {"*.ff": 50.0},
    "trust": 0.5, "weight": 0.3, "window": 1, "layer_weight": 0.1, "step_weight": 0.1,
    "stream_weight": 0.1,
}  # fmt: skip
EVERY_OPTION = [
    (name, option)
    for name, method in METHODS.items()
    for option in sorted(set(method.options) - set(ClosedLoop.__dataclass_fields__))
]


def is_same(plan, other):
    return (
        np.array_equal(plan.full, other.full)
        and np.allclose(plan.weights, other.weights)
        and plan.refresh == other.refresh
    )


@cache
def with_defaults(name):
    """Return a method's kernel, if it needs one, and its plan without any option."""
    kernel = kernel_for(name) if METHODS[name].needs_kernel else None
    return kernel, METHODS[name].open_loop(9, TIMESTEPS, kernel)


@pytest.mark.parametrize(("name", "option"), EVERY_OPTION)
def test_every_option_changes_the_plan_or_the_kernel_that_is_wanted(name, option):
    method, (kernel, plan) = METHODS[name], with_defaults(name)
    use = method.parts(9).use
    if option in ("features", "normalisation", "runs"):
        other = {
            "features": "stride-8",
            "normalisation": {"cosine": "second-moment"}.get(use.normalisation, "cosine"),
            "runs": 2,
        }[option]
        with pytest.raises(KernelError, match=f"the method needs.*{other}"):
            method.open_loop(9, TIMESTEPS, kernel, **{option: other})
    elif option == "shared" and len(kernel.streams) == 1:
        assert is_same(plan, method.open_loop(9, TIMESTEPS, kernel, shared=True))
    else:
        other = OTHERS[option] if option != "ordinary" else not method.parts(9).predictor.ordinary
        assert not is_same(plan, method.open_loop(9, TIMESTEPS, kernel, **{option: other}))


@pytest.mark.parametrize(
    ("full", "kept", "expected"),
    [
        ([0, 4, 8], [4], [0, 4, 8]),
        ([0, 4, 8], [5], [0, 5, 8]),
        ([0, 4, 8], [1], [0, 1, 8]),  # step 0 stays
        ([0, 4, 8], [9, 7], [0, 7, 9]),
        ([0, 1, 2], [6, 7], [0, 6, 7]),
    ],
)
def test_steps_that_must_be_full_are_within_the_budget(full, kept, expected):
    schedule = np.isin(np.arange(10), full)
    assert np.flatnonzero(holding(schedule, kept)).tolist() == expected
    assert np.flatnonzero(schedule).tolist() == full


@pytest.mark.parametrize("aim", [None, Aim(near=0)], ids=str)
def test_steps_that_a_kernel_tells_of_are_full(aim):
    kernel = kernel_for("EigenCache-design", switches=(17, 33))
    plan = make_plan(Even(5), Kriging(2), TIMESTEPS, kernel, aim=aim)
    assert {0, 17, 33} <= {*plan.full_steps} and len(plan.full_steps) == 5


def test_a_budget_too_small_for_them_is_refused():
    with pytest.raises(ValueError, match=r"2 full steps cannot include step 0 and \[3, 5\]"):
        holding(np.isin(np.arange(10), [0, 4]), [5, 3])
    plan = make_plan(Interval(full_steps=5), Newton(1), TIMESTEPS, kept=[17])
    assert plan.full[17] and plan.full.sum() == 5

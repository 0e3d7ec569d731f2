"""The closed loop, with a tiny pipeline in the loop: each part against a slow, plain one."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from fields import field_pipeline

from eigencache import closed_loop
from eigencache.aim import Aim, FullRun
from eigencache.calibration.sampler import image_seed
from eigencache.calibration.simulator import Simulator
from eigencache.closed_loop import Base, ClosedLoop, refine, sampled, starts
from eigencache.methods import make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Kriging, Newton, Reuse
from eigencache.runtime import cached
from eigencache.schedules import Optimal, Steps

STEPS, IMAGES = 8, 3
PROMPTS = ["a cat", "a dog", "a house", "a tree", "a boat", "a hill"]
SEEDS = [image_seed(7, i) for i in range(len(PROMPTS))]
ORDINARY = Kriging(2, 1e-6, ordinary=True)
STARTS = [(0, 1, 2), (0, 5, 6), (0, 3, 7), (0, 4), (0,)]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "DPM++": DPMSolverMultistepScheduler(**FLOW),
    "SDE": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    "Heun": FlowMatchHeunDiscreteScheduler(),
}
every_start = pytest.mark.parametrize("start", STARTS, ids=str)


def simulator(pipe, indices=range(IMAGES), batch=16, steps=STEPS, **arguments):
    calls = [{"prompt": PROMPTS[i]} for i in indices]
    arguments = {"num_inference_steps": steps} | arguments
    return Simulator(pipe, calls, [SEEDS[i] for i in indices], arguments, batch)


def full_run(kernel):
    """Return what a kernel tells of full runs."""
    return FullRun(kernel.matrix(), kernel.sizes, *kernel.response)


class Setting:
    """A field, its full runs, others that are held out, and what the gaps are filled with."""

    def __init__(self, kind="bent", scheduler=None, predictor=ORDINARY, **options):
        self.pipe = field_pipeline(kind, scheduler)
        self.runs = simulator(self.pipe, **options)
        self.held_out = simulator(self.pipe, range(IMAGES, 6), **options)
        self.kernel = self.runs.kernel()
        self.base = Base(predictor, full_run(self.kernel))


@pytest.fixture(scope="module", params=["linear", "bent"])
def setting(request):
    return Setting(request.param)


@pytest.fixture(scope="module")
def bent():
    return Setting("bent")


def refined(setting, plan, loop):
    return refine(plan, Base(ORDINARY, setting.base.run), setting.runs, setting.held_out, loop)


def decibels_by_hand(setting, plan, indices=range(IMAGES)):
    """Sample by the runtime, and compare with full runs."""
    found = []
    for index in indices:
        ends = []
        for made in (plan, None):
            noise = torch.Generator().manual_seed(SEEDS[index])
            arguments = {"generator": noise, "num_inference_steps": STEPS}
            if made is None:
                ends.append(setting.pipe(PROMPTS[index], **arguments).images)
            else:
                with cached(setting.pipe, made):
                    ends.append(setting.pipe(PROMPTS[index], **arguments).images)
        found.append(-10 * np.log10(float((ends[0] - ends[1]).double().square().mean())))
    return np.mean(found)


def plan_like(setting, at):
    plan = make_plan(Steps(at.steps), Reuse(), setting.runs.timesteps)
    return replace(plan, weights=at.weights)


# ---- Fitting gap by gap


@every_start
@pytest.mark.parametrize("anchors", [None, 2])
def test_a_fit_says_how_good_its_plan_is(setting, start, anchors):
    loop = ClosedLoop(anchors=anchors)
    at = loop.fit(setting.runs, setting.base, start)
    assert at.steps == start
    assert at.decibels == pytest.approx(decibels_by_hand(setting, plan_like(setting, at)), abs=0.01)
    used = np.abs(at.weights) > 0
    for k, step in enumerate(start):
        end = (*start[1:], STEPS)[k]
        known = {*start[: k + 1][-(anchors or STEPS) :], *start[: k + 1][-2:]}
        for s in range(step + 1, end):
            assert set(np.flatnonzero(used[s])) <= known
    sums = at.weights.sum(1)[~at.full]
    assert np.allclose(sums, 1, atol=1e-9)  # the base's are one, and corrections sum to zero


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_other_corrections_end_a_gap_closer(name):
    """Of the latents before the next full step; the corrections sum to zero, as they must."""
    setting = Setting("bent", SCHEDULERS[name], batch=1)
    runs, steps, end = setting.runs, (0, 1, 3, 6), 6
    at = ClosedLoop(anchors=None, ridge=1e-9).fit(runs, setting.base, steps)

    def away(u):
        weights = at.weights.copy()
        weights[4:6, [0, 1, 3]] += u
        _, gap = runs.gap(at.full, weights, at.features[:3], 2, None)
        # `gap.toward` is c <f_a, e>: with corrections taken, e is what is still missing.
        return gap.toward, gap.gram

    toward, gram = away(np.zeros(3))
    contrast = np.array([[1, 0], [0, 1], [-1, -1]])
    rest, size = contrast.T @ toward, np.sqrt(np.diag(contrast.T @ gram @ contrast))
    # The least squares' condition: what is missing is orthogonal to every way to go.
    moves = [batch.record.samples[end] - batch.record.samples[end - 1] for batch in runs.batches]
    missing = float(torch.cat(moves).norm())
    assert np.all(np.abs(rest) <= 2e-3 * size * missing)
    for u in contrast.T * 0.01:
        more, _ = away(u)
        assert not np.allclose(contrast.T @ more, rest, atol=1e-3 * size.min() ** 2 * 0.01)


def test_with_two_anchors_a_fit_reaches_what_two_features_can_reach():
    """Where outputs do not depend on x, gaps end at the full run as far as features span it."""
    setting = Setting("forced")
    at = ClosedLoop(anchors=None, rounds=0).fit(setting.runs, setting.base, range(STEPS - 1))
    reuse = sampled(setting.runs, at.full, setting.base.weights(at.full, setting.runs))
    assert at.decibels >= reuse.decibels


@pytest.mark.parametrize(
    "others, shared",
    [
        ([(0, 3, 4, 5)], 1),
        ([(0, 2, 4, 6)], 2),
        ([(0, 2, 4, 6), (0, 2, 3, 6), (0, 3, 4, 5)], 3),
        ([(0, 2, 3)], 3),
        ([(0, 2, 3, 5, 6)], 4),
        ([(0, 2, 3, 5)], 4),
    ],
)
def test_going_on_from_what_is_known_is_fitting_from_the_beginning(setting, others, shared):
    """Of several samplings, from the one that begins with the most of the full steps."""
    loop, steps = ClosedLoop(), (0, 2, 3, 5)
    whole = loop.fit(setting.runs, setting.base, steps)
    known = [loop.fit(setting.runs, setting.base, other) for other in others]
    before = setting.runs.computed
    again = loop.fit(setting.runs, setting.base, steps, known)
    assert setting.runs.computed - before == IMAGES * (len(steps) - shared)
    assert np.array_equal(again.weights, whole.weights)
    assert all(map(torch.equal, again.final, whole.final))


@pytest.mark.parametrize("steps", [(0,), (0, 1, 2), (0, 2, 5, 6), tuple(range(STEPS))], ids=str)
def test_a_fit_computes_each_full_step_once(steps):
    setting = Setting("bent")
    setting.pipe.transformer.calls.clear()
    before = setting.runs.computed
    ClosedLoop().fit(setting.runs, setting.base, steps)
    assert setting.runs.computed - before == IMAGES * len(steps)
    assert setting.pipe.transformer.calls == [IMAGES] * len(steps)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_batches_change_a_plan_by_rounding_alone(batch):
    one, other = (
        Setting("bent", **options) for options in ({"batch": batch}, {"batch": IMAGES})
    )  # fmt: skip
    made = []
    for setting in (one, other):
        plan = make_plan(Optimal(4), ORDINARY, setting.runs.timesteps, setting.kernel)
        made.append(refined(setting, plan, ClosedLoop()))
    assert made[0].full_steps == made[1].full_steps
    np.testing.assert_allclose(made[0].weights, made[1].weights, atol=1e-3)


# ---- Exchanging full steps


def exchanged_by_hand(setting, steps, loop):
    """Move one step at a time, the near places first, and keep whatever is better."""

    def fitted(steps):
        return loop.fit(setting.runs, setting.base, steps).decibels

    steps, best = list(steps), fitted(steps)
    for _ in range(loop.sweeps):
        before = list(steps)
        for i in range(1, len(steps)):
            home = steps[i]
            for far in range(1, loop.reach + 1):
                for place in (home + far, home - far):
                    moved = [*steps[:i], place, *steps[i + 1 :]]
                    if place < STEPS and moved == sorted(set(moved)) and min(moved[1:]) > 0:
                        found = fitted(moved)
                        if found > best:
                            best, steps = found, moved
        if steps == before:
            break
    return tuple(steps), best


@every_start
@pytest.mark.parametrize(("sweeps", "reach", "anchors"), [(1, 1, None), (2, 3, 2)])
def test_exchange_is_as_by_hand_and_never_worse(setting, start, sweeps, reach, anchors):
    loop = ClosedLoop(sweeps=sweeps, reach=reach, anchors=anchors)
    first = loop.fit(setting.runs, setting.base, start)
    found = loop.exchange(setting.runs, setting.base, first)
    steps, best = exchanged_by_hand(setting, start, loop)
    assert found.steps == steps and found.decibels == pytest.approx(best, rel=1e-9)
    assert found.decibels >= first.decibels


def test_no_sweeps_keep_the_schedule(bent):
    loop = ClosedLoop(sweeps=0)
    first = loop.fit(bent.runs, bent.base, (0, 5, 6))
    assert loop.exchange(bent.runs, bent.base, first) is first


def test_exchange_computes_only_from_where_a_step_moves():
    setting = Setting("bent")
    loop = ClosedLoop(reach=1, anchors=1)
    first = loop.fit(setting.runs, setting.base, (0, 1, 6))
    before = setting.runs.computed
    loop.exchange(setting.runs, setting.base, first)
    # Step 1 may move to 2, behind which 2 full steps are computed; step 6 to 7 and to 5.
    assert setting.runs.computed - before == IMAGES * (2 + 1 + 1)


def test_steps_where_the_network_changes_stay():
    pipe = field_pipeline("bent", second="linear")
    runs = simulator(pipe, switch=4)
    base = Base(ORDINARY, full_run(runs.kernel()))
    loop = ClosedLoop(sweeps=3, reach=3)
    found = loop.exchange(runs, base, loop.fit(runs, base, (0, 1, 4, 7)))
    assert runs.switches == (4,) and 4 in found.steps
    plan = make_plan(Optimal(4), ORDINARY, runs.timesteps, runs.kernel())
    assert 4 in plan.full_steps
    held_out = simulator(pipe, range(3, 5), switch=4)
    made = refine(plan, base, runs, held_out, ClosedLoop())
    assert 4 in made.full_steps


# ---- Gauss-Newton


@every_start
@pytest.mark.parametrize("anchors", [None, 2])
def test_slopes_are_what_the_final_latents_gain_with_each_correction(setting, start, anchors):
    loop = ClosedLoop(anchors=anchors)
    at = loop.fit(setting.runs, setting.base, start)
    corrections = loop.corrections(start, STEPS)
    slopes = loop.slopes(setting.runs, at)
    assert slopes.shape == (len(corrections), IMAGES, 6) and slopes.dtype == np.float32

    def final(rows, anchor, change):
        weights = at.weights.copy()
        weights[rows, anchor] += change
        return setting.runs.errors(setting.runs.run(at.full, weights)[0])

    change = 1e-2
    for slope, (_, rows, anchor) in zip(slopes, corrections, strict=True):
        expected = (final(rows, anchor, change) - final(rows, anchor, -change)) / (2 * change)
        assert np.allclose(slope, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


@every_start
@pytest.mark.parametrize("anchors", [None, 1])
def test_gauss_newton_is_never_worse_on_the_fitted_runs(setting, start, anchors):
    loop = ClosedLoop(anchors=anchors)
    at = loop.fit(setting.runs, setting.base, start)
    better = loop.gauss_newton(setting.runs, at)
    assert better.decibels >= at.decibels and better.steps == at.steps


def test_gauss_newton_gains_where_the_fit_was_from_gap_to_gap(bent):
    loop = ClosedLoop(anchors=1)
    at = loop.fit(bent.runs, bent.base, (0, 2, 5))
    assert loop.gauss_newton(bent.runs, at).decibels > at.decibels + 0.2


def test_gauss_newton_solves_a_linear_problem_in_one_step(monkeypatch):
    """It is the least squares of the errors, each image's over the size that it had before."""
    monkeypatch.setattr(closed_loop, "DAMPINGS", (1e-9,))
    setting = Setting("forced")
    loop, steps = ClosedLoop(anchors=1), (0, 3, 6)
    full = np.isin(np.arange(STEPS), steps)
    at = sampled(setting.runs, full, setting.base.weights(full, setting.runs))
    error = setting.runs.errors(at.final)
    weight = 1 / np.sqrt(np.square(error).mean(1, keepdims=True))
    columns = []
    for _, rows, anchor in loop.corrections(steps, STEPS):
        moved = at.weights.copy()
        moved[rows, anchor] += 1
        final, _ = setting.runs.run(full, moved)
        columns.append((weight * (setting.runs.errors(final) - error)).ravel())
    system = np.stack(columns, 1)
    best = np.linalg.lstsq(system, -(weight * error).ravel(), rcond=None)[0]
    least = np.linalg.norm(system @ best + (weight * error).ravel())
    found = loop.gauss_newton(setting.runs, at)
    mine = np.linalg.norm(weight * setting.runs.errors(found.final))
    assert mine == pytest.approx(least, rel=1e-2)
    assert found.decibels > at.decibels + 0.1


def test_gauss_newton_takes_slopes_from_elsewhere(bent):
    loop = ClosedLoop(anchors=1)
    at = loop.fit(bent.runs, bent.base, (0, 2, 5))
    slopes = loop.slopes(bent.runs, at)
    measured, given = loop.gauss_newton(bent.runs, at), loop.gauss_newton(bent.runs, at, slopes)
    assert np.array_equal(measured.weights, given.weights)
    assert loop.gauss_newton(bent.runs, at, 1e-9 * slopes) is at  # no change so large is of use
    nothing = np.zeros_like(slopes)
    assert loop.gauss_newton(bent.runs, at, nothing) is at


def test_there_is_nothing_to_polish_where_all_steps_are_full(bent):
    at = ClosedLoop().fit(bent.runs, bent.base, range(STEPS))
    assert ClosedLoop().polish(bent.runs, bent.held_out, at) is at


def test_polish_is_judged_by_the_held_out(monkeypatch):
    setting = Setting("linear")
    at = ClosedLoop(anchors=1).fit(setting.runs, setting.base, (0, 2, 5))
    scores = []
    for rounds in range(4):
        loop = ClosedLoop(anchors=1, rounds=rounds)
        polished = loop.polish(setting.runs, setting.held_out, at)
        scores.append(sampled(setting.held_out, polished.full, polished.weights).decibels)
        if rounds == 0:
            assert polished is at
    assert scores == sorted(scores) and scores[-1] > scores[0]

    def spoils(self, runs, at, slopes):
        """Better on the fitted runs, so it says, and worse elsewhere."""
        return sampled(runs, at.full, 0.9 * at.weights)._replace(decibels=at.decibels + 1)

    monkeypatch.setattr(ClosedLoop, "gauss_newton", spoils)
    assert ClosedLoop(anchors=1, rounds=3).polish(setting.runs, setting.held_out, at) is at


# ---- All of it


def test_an_aim_is_what_the_fit_departs_from(bent):
    """With a ridge that lets nothing move, each schedule keeps the weights of its aimed plan."""
    aim = Aim()
    base = Base(ORDINARY, bent.base.run, aim)
    loop = ClosedLoop(ridge=1e12)
    for steps in ((0, 3, 5), (0, 2, 3, 6)):
        full = np.isin(np.arange(STEPS), steps)
        plain = bent.base.weights(full, bent.runs)
        aimed = aim.weights(full, plain, bent.base.run)
        assert not np.allclose(aimed, plain, rtol=1e-3)
        assert np.allclose(loop.fit(bent.runs, base, steps).weights, aimed, atol=1e-6)


@pytest.mark.parametrize("budget", range(1, STEPS + 1))
@pytest.mark.parametrize("rounds", [0, 2])
def test_a_refined_plan_is_valid_and_as_good_as_it_says(bent, budget, rounds):
    plan = make_plan(Optimal(budget), ORDINARY, bent.runs.timesteps, bent.kernel)
    loop = ClosedLoop(rounds=rounds)
    made = refined(bent, plan, loop)
    assert len(made.full_steps) == budget
    assert (made.tap, made.model, made.arguments) == (plan.tap, plan.model, plan.arguments)
    changed = not np.array_equal(made.weights, plan.weights)
    assert set(made.source) == {*plan.source, "closed loop"}
    assert np.isnan(made.predicted_error) == changed  # that was the open loop's
    if budget == STEPS:
        assert not changed
        return
    before, after = (decibels_by_hand(bent, p, range(IMAGES, 6)) for p in (plan, made))
    assert after >= before
    if changed:
        told = f"held-out latents: {before:.2f} dB in open loop, {after:.2f} dB in closed loop"
        assert told in made.source["closed loop"]
    if rounds == 0:  # the fit keeps the sums, Gauss-Newton need not
        assert np.allclose(made.weights.sum(1)[~made.full], 1, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_refining_gains_and_gives_the_same_plan_twice(name):
    made = []
    for _ in range(2):
        setting = Setting("bent", SCHEDULERS[name])
        plan = make_plan(Optimal(4), ORDINARY, setting.runs.timesteps, setting.kernel)
        made.append(refined(setting, plan, ClosedLoop()))
        gains = [sampled(setting.runs, p.full, p.weights).decibels for p in (plan, made[-1])]
        assert gains[1] > gains[0]
    assert np.array_equal(made[0].weights, made[1].weights)
    assert made[0].full_steps == made[1].full_steps and made[0].source == made[1].source


def test_the_start_is_the_best_of_the_plan_and_the_designs(bent):
    plan = make_plan(Steps([0, 5, 6, 7]), ORDINARY, bent.runs.timesteps, bent.kernel)
    loop = ClosedLoop(sweeps=0, rounds=0)
    made = refined(bent, plan, loop)
    found = starts(bent.runs, bent.base, plan.full_steps)
    every = {steps: loop.fit(bent.runs, bent.base, steps).decibels for steps in found}
    assert made.full_steps == max(every, key=every.get) != plan.full_steps


def test_an_aim_adds_starts_that_lie_anywhere(bent):
    steps, near = (0, 5, 6, 7), Aim(near=0)
    plain, aimed = (starts(bent.runs, replace(bent.base, aim=a), steps) for a in (None, near))
    free = Aim(near=STEPS)
    assert steps in plain < aimed
    assert aimed - plain <= {free.steps(start, bent.base.run) for start in plain}


def test_with_one_step_to_place_the_best_is_found(bent):
    plan = make_plan(Optimal(2), ORDINARY, bent.runs.timesteps, bent.kernel)
    loop = ClosedLoop(reach=STEPS, rounds=0)
    at = loop.exchange(bent.runs, bent.base, loop.fit(bent.runs, bent.base, plan.full_steps))
    every = [
        loop.fit(bent.runs, bent.base, (0, s)).decibels for (s,) in combinations(range(1, 8), 1)
    ]
    assert at.decibels == pytest.approx(max(every), rel=1e-9)


class Spoilt(ClosedLoop):
    """A closed loop that fits well and then spoils the weights."""

    def polish(self, runs, held_out, start):
        return start._replace(weights=1.3 * start.weights)


def test_a_plan_that_gains_nothing_is_returned_as_it_was(bent):
    plan = make_plan(Optimal(4), ORDINARY, bent.runs.timesteps, bent.kernel)
    made = refined(bent, plan, Spoilt())
    assert np.array_equal(made.full, plan.full) and np.array_equal(made.weights, plan.weights)
    assert "in closed loop" in made.source["closed loop"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tap": "modules"}, "at the output tap, this one is at 'modules'"),
        ({"timesteps": np.linspace(900, 100, STEPS)}, "was made for timestep"),
    ],
)
def test_a_plan_for_something_else_is_refused(bent, changes, message):
    plan = make_plan(Steps((0, 3, 5)), Newton(1), bent.runs.timesteps)
    with pytest.raises(PlanError, match=message):
        refine(replace(plan, **changes), bent.base, bent.runs, bent.held_out, ClosedLoop())

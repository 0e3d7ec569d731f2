"""The aim: against brute force, and against samplings whose errors behave as it supposes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.aim import REACH, Aim, FullRun
from eigencache.design import evenly, fill, latents_errors, spread
from eigencache.kernel import Kernel
from eigencache.methods import METHODS, make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Kriging, Taylor
from eigencache.schedules import Even, Interval, Steps

STEPS = 12
TIMESTEPS = flow_timesteps(STEPS)
RUNS = random_trajectories(TIMESTEPS, runs=40)
KERNEL = kernel_of(RUNS, TIMESTEPS)
MATRIX, SIZES = KERNEL.matrix(), KERNEL.sizes
BASE = Kriging(2, 1e-6, ordinary=True)
FULL = (0, 3, 6, 9)
LEFT = -np.cumsum(SIZES[::-1])[::-1]
GONE = np.maximum(LEFT[0] - LEFT, 0.1 * LEFT[0])
QUIET = FullRun(MATRIX, SIZES)
# Half of an error is removed and half enlarged, and what a network makes of the rest is not known.
RUN = FullRun(MATRIX, SIZES, 0.5 / LEFT - 0.5 / GONE, 0.5 / LEFT)
# Of an undisturbed sampler, so that all can be computed otherwise.
OPEN = Aim(jitter=1e-12, ordinary=False)


def run_of(decay, growth):
    """Return the full run where a share of an error shrinks as noise, and one grows as data."""
    return FullRun(MATRIX, SIZES, decay / LEFT - growth / GONE)


def weights_of(aim, run=RUN, steps=FULL, base=BASE):
    full = np.isin(np.arange(STEPS), steps)
    return full, aim.weights(full, fill(full, base, TIMESTEPS, MATRIX), run)


def sampled(full, weights, outputs, run):
    """Return how far off the latents are at each step, float64 `[T + 1, D]`.

    The sampler's network answers as `eigencache.aim` says, without the noise.

    Args:
        full, weights: as of a plan.
        outputs: float64 `[T, D]`, of the full run.
        run: whose pull it has.
    """
    seen, pull = np.zeros_like(outputs), run.pull[0]
    off = np.zeros((len(outputs) + 1, outputs.shape[1]))
    for step, output in enumerate(outputs):
        if full[step]:
            seen[step] = output + pull[step] * off[step]
            made = seen[step]
        else:
            made = weights[step] @ seen
        off[step + 1] = off[step] + SIZES[step] * (made - output)
    return off


# Shares of an error that shrink with the noise and grow with the data.
ANSWERS = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.3), (0.5, 0.3)]
every_answer = pytest.mark.parametrize("answer", ANSWERS, ids=str)


@every_answer
def test_expected_errors_are_those_of_a_sampler_of_that_kind(answer):
    run = run_of(*answer)
    full, weights = weights_of(Aim(), run)
    _, (expected,) = Aim().targets(FULL, run)
    ends = [*FULL[1:], STEPS]
    found = [np.square(sampled(full, weights, outputs, run)[ends]).mean(1) for outputs in RUNS]
    np.testing.assert_allclose(expected, np.mean(found, axis=0), rtol=1e-8)


@every_answer
def test_an_aim_is_best_where_errors_behave_as_it_supposes(answer):
    """The last gap's, above all: nothing after it can make up for anything."""

    run = run_of(*answer)

    def ends(weights):
        return np.mean([np.square(sampled(full, weights, r, run)[-1]).mean() for r in RUNS])

    full = np.isin(np.arange(STEPS), FULL)
    errors = {
        supposed: ends(weights_of(Aim(jitter=1e-12), run_of(*supposed))[1]) for supposed in ANSWERS
    }
    assert min(errors, key=errors.get) == answer
    assert errors[answer] < ends(fill(full, BASE, TIMESTEPS, MATRIX))


def test_without_disturbance_it_is_least_squares_on_full_runs():
    """As OLSS has it: of the latents at the end of each gap, on the outputs so far."""
    rows = np.concatenate(RUNS, axis=1).T  # [runs * D, T]
    planned, (errors,) = OPEN.targets(FULL, QUIET)
    for i, end in enumerate([*FULL[1:], STEPS]):
        moved = rows[:, :end] @ SIZES[:end]
        used = list(FULL[: i + 1])
        found, *_ = np.linalg.lstsq(rows[:, used], moved, rcond=None)
        np.testing.assert_allclose(planned[i, : i + 1], found, rtol=1e-5)
        assert not planned[i, i + 1 :].any()
        missed = np.square(rows[:, used] @ found - moved).mean()
        np.testing.assert_allclose(errors[i], missed, rtol=1e-4)


def test_the_weights_lead_where_the_aim_is():
    full, weights = weights_of(Aim())
    planned, _ = Aim().targets(FULL, RUN)
    rows = np.where(full[:, None], np.eye(STEPS), weights)
    moved = np.cumsum(SIZES[:, None] * rows, axis=0)
    for i, end in enumerate([*FULL[1:], STEPS]):
        np.testing.assert_allclose(moved[end - 1, list(FULL)], planned[i], atol=1e-10)
    assert not np.triu(weights).any() and not weights[:, ~full].any()
    np.testing.assert_allclose(weights[~full].sum(1), 1)  # as much noise as the full run


def test_with_boundless_scatter_nothing_is_corrected():
    """With outputs that say nothing of the errors, only the first gap's forecast can be better."""
    _, (errors,) = Aim().targets(FULL, FullRun(MATRIX, SIZES, scatter=1e6))
    _, (trusting,) = Aim().targets(FULL, QUIET)
    assert errors[0] == trusting[0]
    assert (errors[1:] > trusting[1:]).all()


def test_adjacent_full_steps_add_no_error_without_disturbance():
    _, (errors,) = OPEN.targets((0, 4, 5, 6, 9), QUIET)
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    assert errors[0] == pytest.approx(errors[2], rel=1e-6)
    assert errors[3] != pytest.approx(errors[2], rel=1e-3)
    assert Aim().targets(range(STEPS), RUN)[1].max() < 1e-12


def cost(aim, steps):
    return float(aim.cost(steps, RUN))


FREE = Aim(near=STEPS)


@pytest.mark.parametrize(
    "aim",
    [FREE, replace(FREE, final=0), replace(FREE, response=0), replace(FREE, trust=0.5)],
    ids=str,
)
def test_no_schedule_nearby_is_better(aim):
    for start in ((0, 1, 2, 3), (0, 4, 7, 9), (0, 9, 10, 11)):
        steps = aim.steps(start, RUN)
        assert len(steps) == 4 and steps[0] == 0 and list(steps) == sorted(set(steps))
        least = cost(aim, steps) * (1 - 1e-9)
        for i in range(1, 4):
            for place in set(range(1, STEPS)) - set(steps):
                moved = tuple(sorted({*steps, place} - {steps[i]}))
                near = abs(place - steps[i]) <= REACH and moved.index(place) == i
                assert not near or cost(aim, moved) >= least


def test_steps_that_must_be_full_stay():
    assert 5 in FREE.steps((0, 2, 5, 8), RUN, kept=(5,))


@pytest.mark.parametrize(("near", "far"), [(0.0, 1), (0.34, 1), (0.6, 2), (1.0, 3)])
def test_steps_stay_near_where_they_began(near, far):
    start = (0, 3, 6, 9)
    steps = Aim(near=near, response=0).steps(start, RUN)
    assert np.abs(np.subtract(steps, start)).max() <= far
    poor = (0, 9, 10, 11)  # from here all want to move further than they may
    assert np.abs(np.subtract(Aim(near=near).steps(poor, RUN), poor)).max() == far


def test_trust_leads_from_repeated_outputs_to_estimates():
    alone, _ = Aim(trust=0).targets(FULL, RUN)
    moved = np.zeros(len(FULL))
    for i, (step, end) in enumerate(zip(FULL, [*FULL[1:], STEPS], strict=True)):
        moved[i] += SIZES[step:end].sum()
        np.testing.assert_allclose(alone[i], moved)
    # The first gap has one output, of which both take the same; the second is the first to differ.
    start = [Aim(trust=trust).targets(FULL, RUN)[0][1] for trust in (0, 0.25, 1)]
    np.testing.assert_allclose(start[1], 0.75 * start[0] + 0.25 * start[2])
    assert np.abs(start[2] - start[0]).max() > 1e-3


def test_a_gap_that_the_scheduler_does_not_look_at_is_left_alone():
    sizes = SIZES.copy()
    sizes[4:6] = 0
    full = np.isin(np.arange(STEPS), FULL)
    base = fill(full, BASE, TIMESTEPS, MATRIX)
    weights = Aim().weights(full, base, FullRun(MATRIX, sizes))
    assert np.isfinite(weights).all()
    assert np.array_equal(weights[4:6], base[4:6])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_size_of_outputs_does_not_matter(scale):
    steps = Aim().steps((0, 3, 6, 9), RUN)
    scaled = FullRun(scale * MATRIX, SIZES, RUN.pull, RUN.scatter)
    assert Aim().steps((0, 3, 6, 9), scaled) == steps
    full, weights = weights_of(Aim())
    base = fill(full, BASE, TIMESTEPS, MATRIX)
    np.testing.assert_allclose(Aim().weights(full, base, scaled), weights, atol=1e-9)
    # Nor does the sign: some samplers walk sigma upwards and predict the opposite.
    other = FullRun(MATRIX, -SIZES, -RUN.pull, RUN.scatter)
    np.testing.assert_allclose(Aim().weights(full, base, other), weights, atol=1e-9)


def test_several_models_count_the_same():
    other = MATRIX + 0.2 * np.diag(np.diag(MATRIX))
    one, _ = Aim().targets(FULL, RUN)
    twice, errors = Aim().targets(
        FULL, FullRun([MATRIX, MATRIX], SIZES, [RUN.pull[0]] * 2, [RUN.scatter[0]] * 2)
    )
    np.testing.assert_allclose(twice, one)
    np.testing.assert_allclose(errors[0], errors[1])
    both, each = (
        Aim().targets(FULL, FullRun(pair, SIZES, RUN.pull, RUN.scatter))
        for pair in ([MATRIX, other], [other, MATRIX])
    )
    np.testing.assert_allclose(both[0], each[0])
    np.testing.assert_allclose(both[1], each[1][::-1])
    assert np.abs(both[0] - one).max() > 1e-3


def test_a_search_leaves_a_poor_start():
    """Full steps that are all too late are moved together, not only one by one."""
    late = tuple(range(STEPS - 5, STEPS))
    start = (0, *late[1:])
    even = (0, 2, 4, 6, 8)
    assert cost(FREE, FREE.steps(start, RUN)) <= cost(FREE, even)


def test_a_plan_with_an_aim_ends_closer_in_open_loop():
    kernel = replace(KERNEL, step_sizes=SIZES)
    plain = make_plan(Even(4), BASE, TIMESTEPS, kernel)
    aimed = make_plan(Even(4), BASE, TIMESTEPS, kernel, aim=Aim())
    ends = [latents_errors(plan, MATRIX, SIZES)[-1] for plan in (plain, aimed)]
    assert ends[1] < 0.8 * ends[0]
    assert aimed.predicted_error == pytest.approx(ends[1])
    assert "Aim(" in aimed.source["aim"]
    method = METHODS["EigenCache-design"]
    assert np.array_equal(method.plan(4, TIMESTEPS, kernel).weights, aimed.weights)
    assert method.plan(4, TIMESTEPS, kernel, response=0.5).source["aim"] == str(Aim(response=0.5))


def test_even_steps_begin_twice_and_stated_ones_once():
    kernel, run, stay = replace(KERNEL, step_sizes=SIZES), QUIET, Aim(near=0)
    for count in range(2, STEPS - 1):
        starts = [np.flatnonzero(of(count, STEPS)).tolist() for of in (evenly, spread)]
        found = [stay.steps(start, run) for start in starts]
        plan = make_plan(Even(count), BASE, TIMESTEPS, kernel, aim=stay)
        assert plan.full_steps == min(found, key=lambda steps: float(stay.cost(steps, run)))
        for start, steps in zip(starts, found, strict=True):
            plan = make_plan(Steps(tuple(start)), BASE, TIMESTEPS, kernel, aim=stay)
            assert plan.full_steps == steps


def test_what_an_aim_cannot_serve_is_refused():
    with pytest.raises(PlanError, match="needs a kernel at tap 'output', not 'hidden'"):
        make_plan(Even(4), BASE, TIMESTEPS, replace(KERNEL, tap="hidden"), aim=Aim())
    with pytest.raises(PlanError, match="needs a kernel at tap 'output'"):
        make_plan(Interval(4), Taylor(1), TIMESTEPS, aim=Aim())
    two = Kernel({"a": MATRIX, "b": MATRIX}, 1, TIMESTEPS, "output")
    with pytest.raises(PlanError, match="one stream"):
        make_plan(Steps(FULL), BASE, TIMESTEPS, two, aim=Aim())


@pytest.mark.parametrize(
    ("stated", "says"),
    [({"response": -1}, "response"), ({"final": -1}, "final"), ({"jitter": 0}, "jitter"),
     ({"ordinary": 1}, "ordinary"), ({"near": -1}, "near"), ({"trust": 1.1}, "trust")],
)  # fmt: skip
def test_options_out_of_range_are_refused(stated, says):
    with pytest.raises(ValueError, match=says):
        Aim(**stated)

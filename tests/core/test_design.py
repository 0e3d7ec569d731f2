"""Optimal design: against all schedules, and against errors measured on trajectories."""

from itertools import combinations

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.design import LAST, gap_errors, latents_errors, optimal_steps, spread
from eigencache.kernel import step_sizes
from eigencache.methods import make_plan
from eigencache.predictors import Chebyshev, Kriging, Newton, Reuse, Taylor, TaylorScaled
from eigencache.schedules import Optimal, Steps

STEPS = 9
TIMESTEPS = flow_timesteps(STEPS)
RUNS = random_trajectories(TIMESTEPS, runs=6)
KERNEL = kernel_of(RUNS, TIMESTEPS)
PREDICTORS = [
    Kriging(3), Kriging(2), Kriging(2, phases=(4,)), Taylor(1), Taylor(2), TaylorScaled(1),
    Newton(1), Reuse(),
]  # fmt: skip


def gaps_of(steps, count):
    """Yield the skipped steps behind each full step."""
    for full, after in zip(steps, [*steps[1:], count], strict=True):
        yield full, range(full + 1, after)


def forecast_errors(predictor, steps, features, timesteps, matrix):
    """Return, gap by gap, how far the sampler is led astray: sum_s d_s (forecast_s - f_s)."""
    sigma = [*(np.asarray(timesteps) / 1000), 0.0]
    errors = []
    for full, skipped in gaps_of(steps, len(features)):
        error = np.zeros(features.shape[1])
        past = np.array([step for step in steps if step <= full])[-predictor.window :]
        for s in skipped:
            weights = predictor.weights(past, s, timesteps, matrix)
            forecast = sum(w * features[a] for w, a in zip(weights, past, strict=True))
            error += (sigma[s + 1] - sigma[s]) * (forecast - features[s])
        errors.append(error)
    return np.array(errors)


def expected_error(predictor, steps):
    """Return the sum over gaps of the root of the mean over runs of |error|^2 / D."""
    errors = [forecast_errors(predictor, steps, run, TIMESTEPS, KERNEL.matrix()) for run in RUNS]
    return np.sqrt(np.mean(np.square(errors), axis=(0, 2))).sum()


def planned(predictor, steps):
    return make_plan(Steps(steps), predictor, TIMESTEPS, KERNEL)


def test_step_sizes_lead_from_noise_to_the_image():
    sizes = step_sizes(TIMESTEPS)
    assert len(sizes) == STEPS
    assert (sizes < 0).all()
    assert sizes.sum() == pytest.approx(-TIMESTEPS[0] / 1000)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_no_schedule_is_better_than_the_optimal_one(predictor):
    budgets = range(1, STEPS + 1)
    designs = optimal_steps(predictor, TIMESTEPS, KERNEL.matrix(), budgets)
    for budget in budgets:
        every = [(0, *rest) for rest in combinations(range(1, STEPS), budget - 1)]
        errors = {steps: expected_error(predictor, steps) for steps in every}
        assert designs[budget] in errors  # so many steps, ascending, from step 0
        assert errors[designs[budget]] == pytest.approx(min(errors.values()), rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_no_design_forecasts_from_two_steps_at_the_same_timestep():
    """PNDM visits one timestep twice; a line through it and itself has no slope."""
    timesteps = TIMESTEPS.copy()
    timesteps[2] = timesteps[1]
    sizes = np.where(np.arange(STEPS) == 5, 0.1, -0.1)  # the latents go back and forth
    for budget in (3, 4, 5):
        steps = optimal_steps(Newton(1), timesteps, KERNEL.matrix(), [budget], sizes=sizes)[budget]
        plan = make_plan(Steps(steps), Newton(1), timesteps)
        assert np.isfinite(plan.weights).all() and len(plan.full_steps) == budget


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_several_budgets_at_once_are_each_as_alone(predictor):
    together = optimal_steps(predictor, TIMESTEPS, KERNEL.matrix(), [2, 5, 3, 8])
    assert set(together) == {2, 3, 5, 8}
    for budget, steps in together.items():
        alone = optimal_steps(predictor, TIMESTEPS, KERNEL.matrix(), [budget])
        assert alone == {budget: steps}


@pytest.mark.parametrize("budget", [7, 9, 12, 18])
def test_a_budget_of_fifty_steps_is_kept(budget):
    timesteps = flow_timesteps(50)
    kernel = kernel_of(random_trajectories(timesteps), timesteps)
    full = Optimal(budget).full(timesteps, Kriging(2), kernel)
    assert full[0]
    assert full.sum() == budget


@pytest.mark.parametrize("predictor", [Kriging(3), Kriging(1), Taylor(1), Reuse()], ids=str)
def test_more_full_steps_never_design_a_larger_error(predictor):
    designs = optimal_steps(predictor, TIMESTEPS, KERNEL.matrix(), range(1, STEPS + 1))
    errors = [expected_error(predictor, steps) for steps in designs.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@pytest.mark.parametrize("steps", [(0, 1, 4), (0, 3, 4, 7), (0, 2, 4, 6)])
@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_the_table_has_the_measured_error_of_each_gap(predictor, steps):
    measured = [forecast_errors(predictor, steps, run, TIMESTEPS, KERNEL.matrix()) for run in RUNS]
    expected = np.sqrt(np.mean(np.square(measured), axis=(0, 2)))
    for i, end in enumerate([*steps[1:], STEPS]):
        past = steps[max(0, i + 1 - predictor.window) : i + 1]
        table = gap_errors(predictor, TIMESTEPS, KERNEL.matrix(), len(past))
        assert table[(*past, end)] == pytest.approx(expected[i], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [(0, 1, 4), (0, 3, 4, 7), (0,), (0, 8)])
@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_the_predicted_error_is_that_of_the_final_latents_on_the_calibration_runs(predictor, steps):
    plan = planned(predictor, steps)
    sigma, squares = np.append(TIMESTEPS / 1000, 0), []
    for run in RUNS:
        exact, forecast = np.zeros((2, run.shape[1]))
        for s in range(STEPS):
            exact = exact + (sigma[s + 1] - sigma[s]) * run[s]
            velocity = run[s] if plan.full[s] else plan.weights[s] @ run
            forecast = forecast + (sigma[s + 1] - sigma[s]) * velocity
        squares.append(np.mean((forecast - exact) ** 2))
    measured = np.sqrt(np.mean(squares))
    assert latents_errors(plan, KERNEL.matrix())[-1] == pytest.approx(measured, rel=1e-9)
    if predictor.kernel:  # the others' plans do not know the kernel
        assert plan.predicted_error == pytest.approx(measured, rel=1e-9)


def test_a_fully_computed_plan_has_no_error():
    assert not latents_errors(planned(Reuse(), range(STEPS)), KERNEL.matrix()).any()


@pytest.mark.parametrize("budgets", [[], [0], [3, STEPS + 1]])
def test_a_budget_out_of_range_is_refused(budgets):
    with pytest.raises(ValueError, match="must lie between 1 and the 9 steps"):
        optimal_steps(Reuse(), TIMESTEPS, KERNEL.matrix(), budgets)


def test_a_window_too_large_for_a_table_is_refused():
    with pytest.raises(ValueError, match="window=5 is too large to design 50 steps"):
        optimal_steps(Kriging(5), flow_timesteps(50), np.eye(50), [9])


@pytest.mark.parametrize("predictor", [Kriging(None), Chebyshev()], ids=str)
def test_a_predictor_from_all_full_steps_has_no_exact_design(predictor):
    with pytest.raises(ValueError, match="window=None is too large to design 9 steps"):
        optimal_steps(predictor, TIMESTEPS, KERNEL.matrix(), [4])


@pytest.mark.parametrize("steps", [1, 2, 7, 28, 50, 1000])
def test_full_steps_are_evenly_apart_but_for_a_shorter_last_gap(steps):
    for count in {1, 2, 3, steps // 7, steps // 2, steps - 1, steps} & {*range(1, steps + 1)}:
        full = spread(count, steps)
        assert full.sum() == count and full[0]
        gaps = np.diff([*np.flatnonzero(full), steps])
        even = steps / (count - 1 + LAST)
        assert np.abs(gaps[:-1] - even).max(initial=0) < 1
        assert abs(gaps[-1] - LAST * even) < 1

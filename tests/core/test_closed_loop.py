"""The closed loop without a network: options, a gap's least squares, and where it starts.

`tests/runtime/test_fitting.py` fits plans on a pipeline.
"""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.aim import Aim, FullRun
from eigencache.closed_loop import CANDIDATES, Base, ClosedLoop, solve, starts
from eigencache.design import evenly, residuals
from eigencache.kernel import step_sizes
from eigencache.methods import holding, make_plan
from eigencache.schedules import Steps

STEPS = 10
TIMESTEPS = flow_timesteps(STEPS)


@pytest.mark.parametrize(
    "options",
    [
        {"anchors": 0},
        {"anchors": 2.0},
        {"sweeps": -1},
        {"sweeps": True},
        {"reach": 0},
        {"rounds": -1},
        {"held_out": 0},
        {"batch": 0},
        {"batch": "16"},
        {"ridge": 0},
        {"ridge": float("nan")},
    ],
)
def test_an_invalid_option_is_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ClosedLoop(**options)


@pytest.mark.parametrize(
    ("held_out", "prompts", "expected"),
    [(None, 2, 1), (None, 3, 2), (None, 8, 4), (None, 100, 84), (5, 8, 3), (7, 8, 1)],
)
def test_so_many_prompts_are_fitted(held_out, prompts, expected):
    assert ClosedLoop(held_out=held_out).fitted(prompts) == expected


@pytest.mark.parametrize(
    ("held_out", "prompts", "says"),
    [(None, 1, "two calibration prompts, one to fit on"), (1, 1, "there is 1"),
     (4, 4, "^4 calibration prompts leave none"), (5, 4, "none to fit on when 5 are held out")],
)  # fmt: skip
def test_too_few_prompts_are_refused(held_out, prompts, says):
    with pytest.raises(ValueError, match=says):
        ClosedLoop(held_out=held_out).fitted(prompts)


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 0.1])
def test_a_gap_is_solved_by_least_squares_that_sum_to_zero(count, ridge):
    draw = np.random.default_rng(count)
    basis, error = draw.normal(size=(40, count)), draw.normal(size=40)
    u = solve(SimpleNamespace(gram=basis.T @ basis, toward=basis.T @ error), ridge)
    # Corrections that sum to zero, by those of all features but the last.
    free = np.vstack([np.eye(count - 1), -np.ones(count - 1)])
    moves = basis @ free
    root = np.sqrt(ridge * np.square(moves).sum() / max(count - 1, 1))
    rows = np.vstack([moves, root * np.eye(count - 1)])
    expected = free @ np.linalg.lstsq(rows, np.append(error, np.zeros(count - 1)), rcond=None)[0]
    assert u.sum() == pytest.approx(0, abs=1e-12)
    assert np.allclose(u, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [1, 3])
def test_a_gap_that_moves_nothing_is_left_alone(count):
    u = solve(SimpleNamespace(gram=np.zeros((count, count)), toward=np.zeros(count)), 1e-3)
    assert np.array_equal(u, np.zeros(count))


@pytest.mark.parametrize("anchors", [None, 1, 2])
def test_corrections_are_of_the_latest_full_steps_before_each_gap(anchors):
    found = ClosedLoop(anchors=anchors).corrections((0, 1, 4, 9), STEPS)
    gaps = {1: (slice(2, 4), [0, 1]), 2: (slice(5, 9), [0, 1, 4])}
    assert found == [
        (k, rows, a) for k, (rows, steps) in gaps.items() for a in steps[-(anchors or 9) :]
    ]


@pytest.mark.parametrize("budget", [2, 4, 6])
@pytest.mark.parametrize("kept", [(), (3,)])
def test_the_fit_starts_from_optimal_designs_and_from_what_the_aim_makes_of_them(budget, kept):
    kernel = kernel_of(random_trajectories(TIMESTEPS, size=30), TIMESTEPS, switches=kept)

    class Runs(SimpleNamespace):
        def __len__(self):
            return STEPS

    runs = Runs(timesteps=TIMESTEPS, step_sizes=step_sizes(TIMESTEPS), switches=kept)
    run = FullRun(kernel.matrix(), runs.step_sizes)
    own = tuple(np.flatnonzero(holding(evenly(budget, STEPS), kept)).tolist())
    found = starts(runs, Base(CANDIDATES[0], run), own)
    assert own in found
    aimed = starts(runs, Base(CANDIDATES[0], run, Aim()), own)
    assert all(len(steps) == budget and {0, *kept} <= set(steps) for steps in aimed)
    every = [(0, *rest) for rest in combinations(range(1, STEPS), budget - 1)]
    every = [steps for steps in every if set(kept) <= set(steps)]
    for predictor in CANDIDATES:

        def error(steps, predictor=predictor):
            wrong = residuals(make_plan(Steps(steps), predictor, TIMESTEPS, kernel))
            q = np.add.reduceat(step_sizes(TIMESTEPS)[:, None] * wrong, steps)  # of each gap
            return np.sqrt(np.maximum(np.einsum("gs,st,gt->g", q, kernel.matrix(), q), 0)).sum()

        assert min(map(error, found)) == pytest.approx(min(map(error, every)), rel=1e-6)

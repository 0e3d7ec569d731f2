"""The gate: which half it forecasts when, and that plans and the runtime take what it gives."""

import numpy as np
import pytest
from helpers import flow_timesteps, sampling

from eigencache.methods import Gate, make_plan
from eigencache.plan import Plan
from eigencache.predictors import Reuse
from eigencache.runtime import cached
from eigencache.schedules import Steps

STEPS = 8
TIMESTEPS = flow_timesteps(STEPS)
PLAN = make_plan(Steps([0, 3, 6]), Reuse(), TIMESTEPS, tap="delta")


@pytest.mark.parametrize(
    ("gate", "back", "front"),
    [(0.5, [1, 2], [4, 5, 7]), (0.6, [1, 2, 4], [5, 7]), (0.0, [], [1, 2, 4, 5, 7]),
     (1, [1, 2, 4, 5, 7], [])],
)  # fmt: skip
def test_the_back_is_forecast_early_and_the_front_late(gate, back, front):
    names, weights = Gate(gate).streams(PLAN.weights)
    assert names == ("front", "back")
    assert np.flatnonzero(weights[0].any(1)).tolist() == front
    assert np.flatnonzero(weights[1].any(1)).tolist() == back
    assert np.array_equal(weights.sum(0), PLAN.weights)
    Plan(PLAN.full, weights, TIMESTEPS, "delta", names)


def test_each_half_may_have_its_own_weights():
    two = np.stack([PLAN.weights, 2 * PLAN.weights])
    _, weights = Gate().streams(two)
    assert np.array_equal(weights[1], 2 * Gate().streams(PLAN.weights)[1][1])
    assert np.array_equal(weights[0], Gate().streams(PLAN.weights)[1][0])


@pytest.mark.parametrize("gate", [-0.1, 1.1, True, float("nan")])
def test_a_gate_out_of_range_is_refused(gate):
    with pytest.raises(ValueError, match="gate must be a finite number"):
        Gate(gate)


def test_half_of_the_blocks_run_at_a_skipped_step(flux):
    names, weights = Gate().streams(PLAN.weights)
    ran = []
    blocks = [*flux.transformer_blocks, *flux.single_transformer_blocks]
    for index, block in enumerate(blocks):
        norm = block.norm1 if index < 2 else block.norm
        norm.register_forward_hook(lambda *_, index=index: ran.append(index))
    with cached(flux, Plan(PLAN.full, weights, TIMESTEPS, "delta", names)):
        for step, _ in enumerate(sampling(flux, TIMESTEPS)):
            expected = [0, 1, 2, 3] if step in (0, 3, 6) else [0, 1] if step < 4 else [2, 3]
            assert ran == expected
            ran.clear()

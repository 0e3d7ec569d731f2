"""Calibration on every pipeline of the zoo, in open and closed loop, gives a plan that samples."""

import numpy as np
import pytest
import torch
from zoo import ZOO

import eigencache
from eigencache.calibration.simulator import Simulator

# Every part of the closed loop, once; how it fares is not for random weights to tell.
LOOP = {"held_out": 1, "reach": 1, "rounds": 1}


@pytest.mark.parametrize("method, options", [("EigenCache-design", {}), ("EigenCache", LOOP)])
def test_a_calibrated_plan_samples(measured, method, options):
    case = measured.case
    prompts = [case.prompt(number) for number in (2, 3)]
    plan = eigencache.calibrate(
        case.pipe, prompts, full_steps=4, method=method, options=options, **case.shared()
    )
    assert len(plan.full_steps) == 4
    np.testing.assert_allclose(plan.timesteps, measured.plain.timesteps, rtol=1e-4, atol=1e-4)
    with eigencache.cached(case.pipe, plan):
        results = case(0)
    assert all(tensor.isfinite().all() for tensor in results)


def test_an_error_grows_through_a_repeated_step_as_through_any():
    """Cosmos steps its scheduler twice, and its latents are what the second time returns."""
    case, step, share = ZOO["cosmos"](), 3, 1e-3
    shared = case.shared() | {"output_type": "latent"}
    runs = Simulator(case.pipe, [case.prompt(1)], [5], shared)
    full, weights = np.ones(len(runs), bool), np.zeros((len(runs), len(runs)))
    final, features = runs.run(full, weights)
    change = features[step - 1][0] - features[step - 2][0]
    pushed = []

    def push(pipe, index, timestep, tensors):
        latents = tensors["latents"]
        if index == step - 1:
            along = change.reshape(-1, *latents.shape).mean(0)
            moved = latents + share * latents.norm() / along.norm() * along
            pushed.append((moved - latents).norm())
            return {"latents": moved}
        return {"latents": latents}

    noise = torch.Generator().manual_seed(5)
    made = case.pipe(**shared | case.prompt(1), generator=noise, callback_on_step_end=push)
    expected = float((made.frames - final[0]).norm() / pushed[0])
    assert expected > 0.01
    found = runs.growth(full, weights, features[:step], step, share, final)
    assert found == pytest.approx(expected, rel=1e-3)

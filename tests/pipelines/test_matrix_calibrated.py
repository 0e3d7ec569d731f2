"""Calibration on every pipeline of the zoo, in open and closed loop, gives a plan that samples."""

import numpy as np
import pytest

import eigencache

# Every part of the closed loop, once; how it fares is not for random weights to tell.
LOOP = {"held_out": 1, "anchors": 2, "reach": 1, "rounds": 1}


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

"""Calibration on every pipeline of the zoo, in open and closed loop, gives a plan that samples."""

import numpy as np
import pytest
from zoo import ZOO
from zoo.runs import Measured

import eigencache


@pytest.fixture(scope="module", params=ZOO)
def measured(request):
    return Measured(ZOO[request.param]())


@pytest.mark.parametrize(
    "method, options", [("EigenCache-design", {}), ("EigenCache", {"held_out": 1})]
)
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

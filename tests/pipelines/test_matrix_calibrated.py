"""Calibration on every pipeline of the zoo, in open and closed loop, gives a plan that samples."""

import numpy as np
import pytest
from zoo import ZOO
from zoo.parts import STEPS

import eigencache

# Every part of the closed loop, once; how it fares is not for random weights to tell.
LOOP = {"held_out": 1, "anchors": 2, "reach": 1, "rounds": 1}


@pytest.mark.parametrize("method, options", [("EigenCache-design", {}), ("EigenCache", LOOP)])
def test_a_calibrated_plan_samples(measured, method, options):
    """The closed loop samples often: it takes fewer steps, where those that remain are enough."""
    case = measured.case
    steps = 5 if options and len(measured.plain) >= STEPS else STEPS
    budget, fewer = 3 if options else 4, {"num_inference_steps": steps}
    prompts = [case.prompt(number) for number in (2, 3)]
    plan = eigencache.calibrate(
        case.pipe, prompts, full_steps=budget, method=method, options=options,
        **case.shared() | fewer,
    )  # fmt: skip
    assert len(plan.full_steps) == budget < len(plan)
    if steps == STEPS:
        np.testing.assert_allclose(plan.timesteps, measured.plain.timesteps, rtol=1e-4, atol=1e-4)
    with eigencache.cached(case.pipe, plan):
        results = case(0, **fewer)
    assert all(tensor.isfinite().all() for tensor in results)


def test_a_guider_that_remembers_outputs_has_those_of_the_last_full_step():
    """HunyuanImage's keeps a mean of them. With zeros at skipped steps it was off by four times."""
    case = ZOO["hunyuan-image"]()
    steps = {"num_inference_steps": 20}
    full = case(0, **steps)[0]
    plan = eigencache.calibrate(
        case.pipe, [case.prompt(1), case.prompt(2)], full_steps=7, **case.shared() | steps
    )
    with eigencache.cached(case.pipe, plan):
        missed = case(0, **steps)[0] - full
    assert missed.square().mean().sqrt() < 1.6 * plan.predicted_error

"""Plans for a quality: the cheapest is found, whatever the qualities, in few tries."""

import numpy as np
import pytest
import torch
from helpers import flow_timesteps
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

from eigencache.calibration import Calibration
from eigencache.calibration._calls import calls_of
from eigencache.calibration.quality import cheapest, psnr
from eigencache.calibration.sampler import load_pipeline
from eigencache.methods import FEWEST, METHODS
from eigencache.plan import Plan

TIMESTEPS = flow_timesteps(50)
BUDGETS = range(FEWEST, 26)


class Planner:
    """Plans whose predicted PSNR is a given function of the budget; counts what it made."""

    def __init__(self, quality):
        self.quality, self.made = quality, []

    def __call__(self, budget: int) -> Plan:
        self.made.append(budget)
        full = np.zeros(50, bool)
        full[:budget] = True
        weights = np.zeros((50, 50))
        weights[budget:, 0] = 1
        return Plan(full, weights, TIMESTEPS, "output", predicted_psnr=self.quality(budget))


@pytest.mark.parametrize("wanted", [30, 41.9, 42, 42.1, 50, 64.9, 65])
@pytest.mark.parametrize("quality", [lambda b: 40 + b, lambda b: 60 + 5 * np.log(b / 25)])
def test_the_cheapest_plan_is_found(quality, wanted):
    planner = Planner(quality)
    good = [b for b in BUDGETS if quality(b) >= wanted]
    if not good:
        with pytest.raises(ValueError, match="out of reach: 25 full steps are predicted"):
            cheapest(planner, wanted, BUDGETS)
        return
    assert sum(cheapest(planner, wanted, BUDGETS).full) == good[0]
    assert len(planner.made) == len(set(planner.made)) <= 12


def test_cheap_plans_are_tried_first():
    planner = Planner(lambda b: 40 + b)
    cheapest(planner, 46, BUDGETS)
    assert max(planner.made) <= 7


def test_what_is_no_picture_has_no_quality():
    with pytest.raises(ValueError, match="neither images nor frames"):
        cheapest(Planner(lambda budget: np.nan), 30, BUDGETS)


@pytest.mark.parametrize(("steps", "first"), [(50, 3), (28, 3), (20, 1), (4, 3), (2, 3)])
def test_an_interval_has_the_budgets_that_its_plans_have(steps, first):
    """Each is met by a plan, and no other number is."""
    timesteps = flow_timesteps(steps)
    budgets = METHODS["TaylorSeer"].budgets(steps, first=first)
    for budget in range(FEWEST, steps):
        if budget in budgets:
            plan = METHODS["TaylorSeer"].plan(budget, timesteps, first=first)
            assert plan.full.sum() == budget
        else:
            with pytest.raises(ValueError, match="no interval gives"):
                METHODS["TaylorSeer"].plan(budget, timesteps, first=first)
    assert METHODS["EigenCache"].budgets(steps) == list(range(FEWEST, steps))
    assert METHODS["EigenCache"].budgets(steps, kept=(3, 5, 6)) == list(range(4, steps))


def test_a_plan_says_nothing_of_its_quality_unless_asked():
    assert np.isnan(METHODS["FORA"].plan(9, TIMESTEPS).predicted_psnr)


@pytest.mark.parametrize("noise", [1, 3, 100])
def test_psnr_is_that_of_torchmetrics(noise):
    draw = np.random.default_rng(noise)
    one = draw.integers(0, 256, (24, 40, 3))
    other = np.clip(one + draw.integers(-noise, noise + 1, one.shape), 0, 255)
    images = [Image.fromarray(values.astype(np.uint8)) for values in (one, other)]
    tensors = [torch.from_numpy(values / 255) for values in (other, one)]
    expected = float(peak_signal_noise_ratio(*tensors, data_range=1.0))
    # torchmetrics takes the logarithm of 10 in float32.
    assert psnr(*map(np.asarray, images)) == pytest.approx(expected, rel=1e-7)


def test_psnr_of_equal_images_is_infinite():
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    assert psnr(np.asarray(image), np.asarray(image)) == float("inf")


@pytest.mark.parametrize("new_noise", [False, True], ids=["deterministic", "new noise"])
def test_recorded_runs_are_only_decoded(tiny_model, new_noise):
    """Where a batch has other noise than each of its calls alone, these are made again."""
    pipe, steps, ran = load_pipeline(tiny_model, "float32"), 5, []
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, stochastic_sampling=new_noise
    )
    pipe.transformer.x_embedder.register_forward_hook(lambda *_: ran.append(1))
    arguments = {
        "num_inference_steps": steps, "height": 16, "width": 16, "max_sequence_length": 24
    }  # fmt: skip
    calibration = Calibration(pipe, calls_of(["a red apple", "a green tree"]), arguments, 3)
    runs = calibration.simulator(range(2), batch=2)
    ran.clear()
    expected = calibration.judge(2)._full
    assert len(ran) == 2 * steps
    ran.clear()
    found = calibration.judge(2, runs)._full
    assert len(ran) == 2 * (steps if new_noise else 1)  # of the first step
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1

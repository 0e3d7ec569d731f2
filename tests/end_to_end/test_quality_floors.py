"""What plans are worth on the embedded model: floors that a change for the worse falls through."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

import eigencache
from eigencache.calibration.quality import psnr
from eigencache.calibration.sampler import image_seed, sample

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_inference_steps": 50, "height": 128, "width": 128, "max_sequence_length": 24}
FULL_STEPS, CALIBRATED, JUDGED = 9, 12, 6


def prompts(name: str, count: int) -> list[str]:
    return (ROOT / f"data/prompts/emoji-{name}.txt").read_text().splitlines()[:count]


@pytest.fixture(scope="module")
def decibels() -> dict[str, float]:
    """Return the mean PSNR to full runs of evaluation prompts at 9 full steps, by method."""
    pipe = DiffusionPipeline.from_pretrained(ROOT / "data/emoji-flux", use_safetensors=True)
    calls = [{**ARGUMENTS, "prompt": prompt} for prompt in prompts("evaluation", JUDGED)]

    def images(plan=None, **changed) -> list[np.ndarray]:
        return [
            np.asarray(sample(pipe, call | changed, image_seed(1, i), plan).frames[0])
            for i, call in enumerate(calls)
        ]

    full = images()

    def mean(made: list[np.ndarray]) -> float:
        return float(np.mean([psnr(a, b) for a, b in zip(made, full, strict=True)]))

    found = {"fewer-steps": mean(images(num_inference_steps=FULL_STEPS))}
    for method in ("EigenCache-design", "EigenCache"):
        plan = eigencache.calibrate(
            pipe, prompts("calibration", CALIBRATED), FULL_STEPS, method=method, **ARGUMENTS
        )
        found[method] = mean(images(plan))
    return found


def test_design_is_above_fewer_steps(decibels):
    assert decibels["EigenCache-design"] >= decibels["fewer-steps"] + 5  # measured: 7.2


def test_closed_loop_is_above_the_design(decibels):
    assert decibels["EigenCache"] >= decibels["EigenCache-design"] + 3  # measured: 5.4

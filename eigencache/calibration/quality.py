"""Quality: what images a plan will give, told from calibration prompts, and plans for a quality."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL.Image import Image

from eigencache.calibration.sampler import Settings, image_seed, sample
from eigencache.plan import PREDICTED, Plan, predicted_psnr
from eigencache.runtime import cached

# The fewest full steps that are tried for a quality; each try has a third more.
FEWEST, GROWTH = 2, 4 / 3


class Judge:
    """Samples prompts in full and by a plan, and compares the images.

    Args:
        pipe: from `eigencache.calibration.sampler.load_encoded`.
        texts: prompt index to the embeddings of calibration prompts that no plan was fitted on.
        settings: how to call the pipeline.
        seed: of the calibration.
    """

    def __init__(self, pipe: Any, texts: dict[int, dict], settings: Settings, seed: int) -> None:
        self.pipe, self.settings = pipe, settings
        self.calls = [(text, image_seed(seed, index)) for index, text in texts.items()]

    def psnr(self, plan: Plan) -> float:
        """Return the mean over prompts of the PSNR in dB of 8-bit images to those of full runs."""
        with cached(self.pipe.transformer, plan):
            made = self._images()
        return float(np.mean([psnr(a, b) for a, b in zip(made, self._full, strict=True)]))

    @cached_property
    def _full(self) -> list:
        return self._images()

    def _images(self) -> list:
        return [sample(self.pipe, text, self.settings, noise).image for text, noise in self.calls]


def psnr(reference: Image, image: Image) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit RGB images in dB; inf where they agree.

    Args:
        reference, image: of the same size.
    """
    one, other = (np.asarray(each.convert("RGB"), np.float64) / 255 for each in (reference, image))
    error = np.mean((one - other) ** 2)
    return float(-10 * np.log10(error)) if error else np.inf


def with_prediction(plan: Plan, judge: Judge) -> Plan:
    """Return the plan with `predicted psnr`, in dB, among what it says of itself."""
    return replace(plan, source={**plan.source, PREDICTED: f"{judge.psnr(plan):.6f}"})


def cheapest(plan_of: Callable[[int], Plan], quality: float, budgets: Sequence[int]) -> Plan:
    """Return the plan of the fewest full steps whose predicted PSNR is at least `quality` dB.

    Args:
        plan_of: a number of full steps to its plan, which predicts its PSNR.
        quality: in dB.
        budgets: the numbers of full steps to choose from, ascending; quality must rise with them.

    Raises:
        ValueError: not even the largest budget is predicted to reach the quality.
    """
    plans, position, short = {}, 0, -1

    def reaches(i: int) -> bool:
        plans[i] = plan_of(budgets[i])
        return predicted_psnr(plans[i]) >= quality

    while not reaches(position):  # cheap plans first: designing a plan costs as sampling by it
        if position == len(budgets) - 1:
            raise ValueError(
                f"psnr: {quality:g} dB is out of reach: {budgets[-1]} full steps are predicted "
                f"to give {predicted_psnr(plans[position]):.1f} dB; ask for less"
            )
        wanted = max(budgets[position] + 1, round(budgets[position] * GROWTH))
        short = position
        position = min(bisect_left(budgets, wanted), len(budgets) - 1)
    while position - short > 1:
        middle = (short + position) // 2
        if reaches(middle):
            position = middle
        else:
            short = middle
    return plans[position]

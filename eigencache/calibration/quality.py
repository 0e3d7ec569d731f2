"""Quality: what images a plan will give, told from calibration prompts, and plans for a quality."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from eigencache.calibration._calls import Ending, called, eight_bit, pictures_of, quiet
from eigencache.plan import Plan
from eigencache.runtime import cached
from eigencache.runtime._driver import Driver, Policy, StepCall
from eigencache.runtime._taps import map_tensors

# Each try for a quality has a third more full steps than the last.
GROWTH = 4 / 3


class Judge:
    """Samples calls in full and by a plan, and compares the images, or the frames of videos.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments of calls that no plan was fitted on.
        seeds: of the noise of each.
        recorded: of each call, how its full run ended (`Simulator.recorded`), which is then only
            decoded; None where it is to be made.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Mapping[str, Any]], seeds: Sequence[int],
        recorded: Sequence[Ending | None] | None = None,
    ) -> None:  # fmt: skip
        self.pipe, self.calls = pipe, list(zip(calls, seeds, strict=True))
        self.recorded = recorded or [None] * len(self.calls)

    def psnr(self, plan: Plan) -> float:
        """Return the mean over calls of the PSNR in dB of 8-bit images to those of full runs.

        It is nan if the pipeline makes neither images nor frames.
        """
        found = self.each(plan)
        return float(np.mean(found)) if found else float("nan")

    def each(self, plan: Plan) -> list[float]:
        """Return the PSNR of each call's images; none of what is no picture."""
        with quiet(self.pipe), cached(self.pipe, plan):
            made = [pixels_of(self.pipe, call, seed) for call, seed in self.calls]
        pairs = zip(made, self._full, strict=True)
        return [psnr(a, b) for a, b in pairs if a is not None and b is not None]

    @cached_property
    def _full(self) -> list:
        found, shapes = [], dict[tuple[str, int], Any]()
        for (call, seed), ending in zip(self.calls, self.recorded, strict=True):
            driver = Driver(self.pipe, Policy() if ending is None else _Replay(ending))
            driver.shapes = shapes
            with quiet(self.pipe), driver:
                found.append(pixels_of(self.pipe, call, seed))
        return found


class _Replay(Policy):
    """Ends a pipeline's run as a recorded one has; after the first step no network runs."""

    replays = True

    def __init__(self, ending: Ending) -> None:
        self.ending = ending

    def computes(self, step: int) -> bool:
        return step == 0  # something besides may happen there

    def moved(self, call: StepCall, result: Any) -> Any:
        last = (call.index, call.repeats) == self.ending[:2]
        return map_tensors(torch.clone, self.ending.result) if last else result

    def sibling(self) -> Policy:
        return Policy()


def pixels_of(pipe: Any, call: Mapping[str, Any], seed: int) -> np.ndarray | None:
    """Return what a pipeline makes, uint8 `[..., H, W, 3]`; None if it is no picture."""
    found = pictures_of(called(pipe, call, seed, "np"))
    if found is None:
        return None
    return eight_bit(found[0] if isinstance(found, list) else found)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR in dB between two uint8 arrays; infinite if they are equal."""
    error = np.square(image.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def with_prediction(plan: Plan, judge: Judge) -> Plan:
    """Return the plan with the PSNR in dB that its images are predicted to have."""
    return replace(plan, predicted_psnr=judge.psnr(plan))


def cheapest(plan_of: Callable[[int], Plan], quality: float, budgets: Sequence[int]) -> Plan:
    """Return the plan of the fewest full steps whose predicted PSNR is at least `quality` dB.

    Args:
        plan_of: a number of full steps to its plan, which predicts its PSNR.
        quality: in dB.
        budgets: the numbers of full steps to choose from, ascending; quality must rise with them.

    Raises:
        ValueError: not even the largest budget is predicted to reach the quality; there is none;
            or no PSNR can be predicted, because the pipeline makes neither images nor frames.
    """
    if not budgets:
        raise ValueError("psnr: with so few sampler steps there is none to skip")
    plans, position, short = {}, 0, -1

    def reaches(i: int) -> bool:
        plans[i] = plan_of(budgets[i])
        if np.isnan(plans[i].predicted_psnr):
            raise ValueError(
                "psnr: the pipeline makes neither images nor frames, which alone have a PSNR; "
                "state full_steps"
            )
        return plans[i].predicted_psnr >= quality

    while not reaches(position):  # cheap plans first: designing a plan costs as sampling by it
        if position == len(budgets) - 1:
            raise ValueError(
                f"psnr: {quality:g} dB is out of reach: {budgets[-1]} full steps are predicted "
                f"to give {plans[position].predicted_psnr:.1f} dB, and more are no choice; ask for "
                "less, or sample without a cache"
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

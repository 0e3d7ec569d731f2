"""How many full steps a quality takes by built-in plans: one call of a pipeline tells."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eigencache.built_in import Budget
from eigencache.calibration._calibration import Calibration
from eigencache.calibration.quality import cheapest, with_prediction
from eigencache.calibration.recording import outline
from eigencache.methods import FEWEST
from eigencache.plan import Plan
from eigencache.runtime._built_in import FEW, built_in_plan

# Two images with noise of their own judge; of the caller's noise none is drawn.
SEED, IMAGES = 7, 2
# What an image does not depend on, or what the probe states itself.
_NOT_ASKED = ("generator", "output_type", "return_dict", "callback")
_log = logging.getLogger("eigencache")


def probe(pipe: Any, call: Mapping[str, Any], psnr: float) -> Plan:
    """Return the cheapest built-in plan that is predicted to give a quality in one call.

    Nothing tells beforehand how hard a model is, so images are compared: the call is made in full
    with two seeds, then by plans of more and more full steps with the same two. That costs about
    as much as four images in full. What is predicted is the mean over these two, and images differ:
    `data/benchmarks/quality.csv` says how far others of the same model were from it.

    Args:
        pipe: a diffusers pipeline without a cache, and with a scheduler that built-in plans serve.
        call: the arguments of the call. Callbacks are left out, since they would be called for
            images that nobody sees.
        psnr: of 8-bit images to those of full runs, in dB.

    Raises:
        ValueError: no plan that skips a step is predicted to reach the quality, or the pipeline
            makes neither images nor frames.
        PlanError: there is no built-in plan for the scheduler.
    """
    call = {name: value for name, value in call.items() if not name.startswith(_NOT_ASKED)}
    _log.warning(
        "psnr=%g: the first call of the pipeline is made %d times in full and some times by "
        "built-in plans, to find how many full steps it takes", psnr, IMAGES,
    )  # fmt: skip
    calibration = Calibration(pipe, [call] * IMAGES, {}, SEED)
    judge = calibration.judge(IMAGES)
    timesteps, kept = outline(pipe, call)

    def judged(budget: int) -> Plan:
        plan = built_in_plan(pipe.scheduler, timesteps, Budget(budget), kept)
        return replace(with_prediction(plan, judge), **calibration.belongs)

    steps = len(timesteps)
    return cheapest(judged, psnr, range(max(FEWEST, 1 + len(kept), math.ceil(FEW * steps)), steps))

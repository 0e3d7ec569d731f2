"""The plan of a quality, from one call of a pipeline."""

import logging
from collections.abc import Mapping
from typing import Any

from eigencache.calibration._calibrate import plan_with
from eigencache.calibration._calibration import Calibration
from eigencache.kernel import OUTPUT
from eigencache.methods import METHODS
from eigencache.plan import Plan

# The call's kernel is of two images with noise of their own, which judge too; of the caller's noise
# none is drawn.
SEED, IMAGES = 7, 2
METHOD = "EigenCache-design"
# What an image does not depend on, or what the probe states itself.
_NOT_ASKED = ("generator", "output_type", "return_dict", "callback")
_log = logging.getLogger("eigencache")


def probe(pipe: Any, call: Mapping[str, Any], psnr: float) -> Plan:
    """Return the cheapest plan that is predicted to give a quality in one call.

    Nothing tells beforehand how hard a model is. So the call is calibrated on: it is made with two
    seeds, in full and with few full steps, and plans of more and more full steps are designed from
    the kernel and tried with the same two. That costs about as much as five images in full. What is
    predicted is the mean over these two, and images differ: `data/benchmarks/quality.csv` says how
    far others of the same model were from it.

    Args:
        pipe: a diffusers pipeline without a cache.
        call: the arguments of the call. Callbacks are left out, since they would be called for
            images that nobody sees.
        psnr: of 8-bit images to those of full runs, in dB.

    Raises:
        ValueError: no plan that skips a step is predicted to reach the quality, or the pipeline
            makes neither images nor frames.
        PlanError: the pipeline does not step a scheduler as diffusers' pipelines do.
    """
    call = {name: value for name, value in call.items() if not name.startswith(_NOT_ASKED)}
    _log.warning(
        "psnr=%g: the first call of the pipeline is made %d times in full and some times with "
        "fewer steps in full, to find how many it takes", psnr, IMAGES,
    )  # fmt: skip
    calibration = Calibration(pipe, [call] * IMAGES, {}, SEED)
    runs = calibration.simulator(range(IMAGES), IMAGES)
    return plan_with(
        calibration, METHODS[METHOD], psnr=psnr, kernel=calibration.kernel(OUTPUT, runs=runs),
        judge=calibration.judge(IMAGES, runs),
    )  # fmt: skip

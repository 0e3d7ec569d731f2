"""The plan of a quality, from one call of a pipeline."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eigencache.calibration._calibration import Calibration
from eigencache.calibration.quality import Judge, cheapest
from eigencache.calibration.recording import weighed
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan

# The images have noise of their own: of the caller's none is drawn.
SEED, IMAGES = 7, 2
METHOD = "EigenCache-design"
# What an image does not depend on, or what the probe states itself.
_NOT_ASKED = ("generator", "output_type", "return_dict", "callback")
_log = logging.getLogger("eigencache")


class Probe:
    """One call of a pipeline, with two seeds: plans are made of both images.

    What a plan is predicted to give is the mean over the two, each sampled by the plan of the
    other's kernel, as many full steps. By the plan of its own kernel an image is nearer to its full
    run than others will be: `data/benchmarks/quality.csv` says how far those were from predictions.

    Args:
        pipe: a diffusers pipeline without a cache.
        call: the arguments of the call.

    Raises:
        PlanError: the pipeline does not step a scheduler as diffusers' pipelines do.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        calibration = Calibration(pipe, [call] * IMAGES, {}, SEED)
        runs = [calibration.simulator([i], 1) for i in range(IMAGES)]
        self.kernels = [
            replace(run.kernel(calibration.source), **calibration.belongs) for run in runs
        ]
        self.kernel = weighed(self.kernels)
        self.judges = [
            Judge(pipe, [call], [seed], run.recorded())
            for run, seed in zip(runs, calibration.seeds, strict=True)
        ]

    def plan(self, full_steps: int) -> Plan:
        """Return the plan of a budget, with its predicted PSNR; that is nan of what is no picture.

        Raises:
            ValueError: the budget cannot be met.
        """
        others = zip(self.judges, reversed(self.kernels), strict=True)
        found = [judge.psnr(_designed(full_steps, kernel)) for judge, kernel in others]
        return replace(_designed(full_steps, self.kernel), predicted_psnr=float(np.mean(found)))


def probe(pipe: Any, call: Mapping[str, Any], psnr: float) -> Plan:
    """Return the cheapest plan that is predicted to give a quality in one call.

    Nothing tells beforehand how hard a model is. So the call is calibrated on: it is made with two
    seeds, in full and with few full steps, and plans of more and more full steps are designed and
    tried (`Probe`). That costs about as much as five images in full.

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
    probed = Probe(pipe, call)
    kernel = probed.kernel
    budgets = METHODS[METHOD].budgets(len(kernel.timesteps), kernel.switches)
    return cheapest(probed.plan, psnr, budgets)


def _designed(full_steps: int, kernel: Kernel) -> Plan:
    return METHODS[METHOD].plan(full_steps, kernel.timesteps, kernel)

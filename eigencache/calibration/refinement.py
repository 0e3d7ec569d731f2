"""Refinement: a method's plans fitted in closed loop to a pipeline, with what their images will be.

The last calibration prompts, `held_out` of them, are not fitted: they judge.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from eigencache.calibration.full_runs import full_runs
from eigencache.calibration.quality import FEWEST, Judge, cheapest, with_prediction
from eigencache.calibration.sampler import Settings
from eigencache.closed_loop import ClosedLoop, refine
from eigencache.kernel import Kernel, KernelUse
from eigencache.methods import Method
from eigencache.plan import Plan, predicted_psnr


class Refinement:
    """What all plans of one method share that are fitted with the network in the loop.

    Args:
        pipe: from `sampler.load_encoded`, or another with a transformer and a VAE.
        texts: the embeddings of the calibration prompts, each from `sampler.encode`.
        settings: how to call the pipeline.
        seed: of the calibration.
        method: one that has a closed loop.
        kernel: of the kind that the method wants.
        options: of the method.

    Raises:
        ValueError: the method has no closed loop, an option is unknown or out of range, or so
            many prompts are held out that none is left to fit on.
        PlanError: the sampler takes other steps than the closed loop can follow.
    """

    def __init__(
        self, pipe: Any, texts: Sequence[dict], settings: Settings, seed: int,
        method: Method, kernel: Kernel, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.method, self.kernel, self.options = method, kernel, options
        self.num_steps = settings.num_steps
        self.loop = check_held_out(method.parts(1, **options).closed_loop, len(texts))
        fitted = len(texts) - self.loop.held_out
        rest = range(fitted, len(texts))
        self.runs = full_runs(pipe, texts, settings, seed, range(fitted), self.loop.batch)
        self.held_out = full_runs(pipe, texts, settings, seed, rest, self.loop.batch)
        self.judge = Judge(pipe, {index: texts[index] for index in rest}, settings, seed)

    def plan(self, full_steps: int) -> Plan:
        """Return the plan of a budget, fitted, with its predicted PSNR; say how it went.

        Raises:
            ValueError: the budget cannot be met.
            PlanError, KernelError: the kernel is of another kind, tap or sampler.
        """
        parts = self.method.parts(full_steps, **self.options)
        plan = self.method.plan(full_steps, self.kernel.timesteps, self.kernel, **self.options)
        use = parts.use or KernelUse()
        matrix = use.of(self.kernel).matrix()
        plan = refine(plan, parts.predictor, matrix, self.runs, self.held_out, self.loop)
        plan = with_prediction(plan, self.judge)
        tqdm.write(
            f"{full_steps} full steps {list(plan.full_steps)}: predicted PSNR "
            f"{predicted_psnr(plan):.2f} dB; {plan.source['closed loop']}"
        )
        return plan

    def cheapest(self, psnr: float) -> Plan:
        """Return the plan of the fewest full steps that is predicted to give `psnr` dB.

        Raises:
            ValueError: not even with every step full it would.
        """
        return cheapest(self.plan, psnr, range(FEWEST, self.num_steps + 1))


def check_held_out(loop: ClosedLoop | None, prompts: int) -> ClosedLoop:
    """Return the closed loop, if a number of calibration prompts suffices for it.

    Raises:
        ValueError: there is none; or it holds out so many prompts that none is left to fit on.
    """
    if loop is None:
        raise ValueError("the method has no closed loop, so its plans cannot be refined")
    if prompts <= loop.held_out:
        raise ValueError(
            f"{prompts} calibration prompts leave none to fit on when {loop.held_out} are held "
            "out; state more prompts, or fewer held_out"
        )
    return loop

"""Sampling by a built-in plan, which is designed when an image begins."""

import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from eigencache.built_in import KINDS, Budget, Design, fitting, sources
from eigencache.plan import Plan, PlanError, PlanWarning
from eigencache.runtime._driver import DRIVER, Driver, StepCall
from eigencache.runtime._guidance import guidance_of
from eigencache.runtime._policies import OutputPolicy, check_guidance
from eigencache.runtime.stats import CacheStats

# Schedulers that the built-in plans are not for, by a part of their class's name, and why.
_NOT_FOR = {
    "EDM": "its outputs are scaled in a way that no built-in source has",
    "LCM": "it draws new noise at every step",
    "TCD": "it draws new noise at every step",
    "SCM": "it draws new noise at every step",
    "Ancestral": "it draws new noise at every step",
    "DDPM": "it draws new noise at every step",
    "SDE": "it draws new noise at every step",
    "CogVideoXDPM": "it draws new noise at every step",
    "CosineDPM": "it draws new noise at every step",
    "SASolver": "it draws new noise at most steps",
    "UnCLIP": "it draws new noise at every step",
}

# With a smaller share of full steps, plans under guidance lost to plain sampling on models unlike
# the sources (data/benchmarks/built-in.csv).
FEW = 1 / 8
# How many designs are kept: one for every size, number of steps and guidance in use, of a megabyte.
MOST = 32


def _refused(scheduler: Any, why: str) -> PlanError:
    return PlanError(
        f"there is no built-in plan for {type(scheduler).__name__}: {why}; make a plan of your own "
        "with eigencache.calibrate"
    )


def kind_of(scheduler: Any) -> str:
    """Return what a scheduler is given: one of `eigencache.built_in.KINDS`.

    Raises:
        PlanError: there is no built-in plan for the scheduler; the message says why.
    """
    name, config = type(scheduler).__name__, scheduler.config
    for part, why in _NOT_FOR.items():
        if part in name:
            raise _refused(scheduler, why)
    if config.get("stochastic_sampling") or "sde" in str(config.get("algorithm_type")):
        raise _refused(scheduler, "it is set to draw new noise at every step")
    kind = "flow" if _is_flow(scheduler) else config.get("prediction_type")
    if kind in KINDS and len({source.model for source in fitting(kind, sources())}) >= 2:
        return kind
    raise _refused(
        scheduler, f"fewer than two of the models behind the built-in plans predict {kind!r}"
    )


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    as_flow = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas")
    return bool(as_flow) or type(scheduler).__name__.startswith("FlowMatch")


def levels_of(scheduler: Any, timesteps: np.ndarray) -> np.ndarray:
    """Return the noise levels of the steps that an image takes, and the level after the last.

    Args:
        scheduler: of the pipeline, after `set_timesteps`.
        timesteps: float64 `[T]`, those that it is stepped through: some in a row of its own.

    Returns:
        Float64 `[T + 1]`, as `eigencache.built_in` defines them.

    Raises:
        PlanError: the scheduler does not tell them, or they do not fall from 1 towards 0.
    """
    own, count = scheduler.timesteps.detach().double().cpu().numpy(), len(timesteps)
    starts = [
        i for i in range(len(own) - count + 1) if np.array_equal(own[i : i + count], timesteps)
    ]
    if not starts:
        raise _refused(scheduler, "the pipeline visits other timesteps than the scheduler's own")
    start = starts[0]
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) == len(own) + 1:
        found = sigmas.double().cpu().numpy()[start : start + count + 1]
        if scheduler.config.get("invert_sigmas"):
            found = 1 - found
        elif not _is_flow(scheduler):
            found = found / (1 + found)
    elif isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        after = own[start : start + count + 1].astype(int)
        squares = scheduler.alphas_cumprod.double().cpu().numpy()[after]
        clean, noise = np.sqrt(squares), np.sqrt(1 - squares)
        found = np.append(noise / (clean + noise), [0.0] * (count + 1 - len(after)))
    else:
        raise _refused(scheduler, "it does not tell its noise levels")
    if not (np.isfinite(found).all() and (np.diff(found) <= 1e-6).all() and found[0] <= 1 + 1e-6):
        raise _refused(scheduler, "its noise levels do not fall from 1 towards 0")
    return np.clip(found, 0, 1)


def full_steps_of(budget: Budget, steps: int, guidance: float, told: set[str] | None = None) -> int:
    """Return how many of a sampler's steps are full.

    Warns by a PlanWarning where all of them are, or so few that plans may do harm; not of what is
    `told`, to which it adds.
    """
    wanted, text = budget.of(steps), ""
    if wanted >= steps:
        text = (
            f"{wanted} steps were to be computed in full, and the sampler takes {steps}: all of "
            "them are"
        )
    elif wanted < FEW * steps and guidance > 1:
        text = (
            f"with {wanted} of {steps} steps in full, a built-in plan under guidance may be worse "
            f"than plain sampling with as few steps. Take {math.ceil(FEW * steps)} or more, or "
            "make a plan of your own with eigencache.calibrate, for which one prompt is enough"
        )
    if text and text not in (told or ()):
        warnings.warn(text, PlanWarning, stacklevel=3)
        if told is not None:
            told.add(text)
    return min(wanted, steps)


def built_in_plan(
    scheduler: Any, timesteps: np.ndarray, guidance: float, budget: Budget,
    kept: Sequence[int] = (),
) -> Plan:  # fmt: skip
    """Return the built-in plan for a scheduler, after `set_timesteps`, and the timesteps it visits.

    Args:
        scheduler: of a pipeline.
        timesteps: float64 `[T]`.
        guidance: the scale of guidance; 1 if there is none.
        budget: how many steps are full.
        kept: steps that must be among them.

    Raises:
        PlanError: there is none for the scheduler.
        ValueError: the budget is too small for the steps that must be full.
    """
    design = Design(kind_of(scheduler), levels_of(scheduler, timesteps), timesteps, guidance)
    return design.plan(full_steps_of(budget, len(timesteps), design.guidance), kept)


class BuiltInPolicy(OutputPolicy):
    """Sampling by a plan that is designed for the timesteps of each image.

    Where the pipeline begins to call its networks in another way at a step that the plan skips,
    the step is computed in place of the next full one, if there is one left, and the plan made anew
    from there.

    Args:
        budget: how many steps are computed; of a quality, what a probe has found.
        stats: told of the plan.
        anchor_device: as for `OutputPolicy`.
        leader: of the copy of a scheduler, whose steps are full where the leader's are.

    Attributes:
        probed: the plan that a probe has made for a quality. Images with other timesteps have
            built-in ones, of as many full steps.
    """

    plan: Plan | None  # type: ignore[assignment]  # of the present image
    probed: Plan | None = None
    key: tuple  # of the present image's design
    visited: np.ndarray  # the timesteps of the present image

    def __init__(
        self, budget: Budget, stats: CacheStats, anchor_device: torch.device | None = None,
        leader: "BuiltInPolicy | None" = None,
    ) -> None:  # fmt: skip
        self.budget, self.stats, self.leader = budget, stats, leader
        self.anchor_device = anchor_device
        self.anchors: dict[int, Any] = {}
        self.plan, self.steps, self.key = None, None, ()
        self.told: set[str] = set()  # of warnings
        self.designs: dict[tuple, tuple[Design, Plan]] = {}

    def begin(self, timesteps: np.ndarray | None, pipe: Any) -> None:
        if self.leader:
            plan = self.leader.plan
            if timesteps is None or plan is None or len(timesteps) != len(plan):
                raise PlanError(
                    "the pipeline's copies of its scheduler do not all take the same steps: make a "
                    "plan of your own with eigencache.calibrate"
                )
            self.follow(plan)
            return
        if timesteps is None or pipe is None:
            raise PlanError(
                "the pipeline visits timesteps that are not its scheduler's, so that there is no "
                "built-in plan: make one of your own with eigencache.calibrate"
            )
        self.key, self.visited = (), timesteps
        if self.probed and np.array_equal(self.probed.timesteps, timesteps):
            check_guidance(self.probed, pipe)
            self.follow(self.probed)
            self.stats.follow(self.probed)

    def _designed(self, call: StepCall) -> Plan:
        """Return the built-in plan of the image whose first step this is."""
        if call.bound.arguments.get("eta"):
            raise _refused(call.scheduler, "with eta above 0 it draws new noise at every step")
        levels, kind = levels_of(call.scheduler, self.visited), kind_of(call.scheduler)
        guidance = guidance_of(call)
        self.key = (kind, guidance, *levels, *self.visited)
        if self.key not in self.designs:
            design = Design(kind, levels, self.visited, guidance)
            full_steps = full_steps_of(
                self._budget(), len(self.visited), design.guidance, self.told
            )
            self.designs[self.key] = design, design.plan(full_steps)
            if len(self.designs) > MOST:
                del self.designs[next(iter(self.designs))]
        return self.designs[self.key][1]

    def _budget(self) -> Budget:
        """Return how many steps are computed; warn that it was found for other timesteps."""
        if self.budget.psnr is None:
            return self.budget
        if self.probed is None:
            raise PlanError(
                "psnr: only a call of the pipeline itself can be probed, not a loop by hand: state "
                "full_steps"
            )
        count = int(self.probed.full.sum())
        warnings.warn(
            f"psnr={self.budget.psnr:g}: it was found to take {count} full steps of "
            f"{len(self.probed)}. This image has other timesteps, {len(self.visited)}: as many are "
            "computed, by a built-in plan, but its quality is not known; enable the cache anew to "
            "find it",
            PlanWarning, stacklevel=2,
        )  # fmt: skip
        return Budget(count)

    def computes(self, step: int) -> bool:
        return self.plan is None or bool(self.plan.full[step])  # None before the first step ends

    def given(self, call: StepCall) -> None:
        if self.plan is None:
            plan = self._designed(call)
            self.follow(plan)
            self.stats.follow(plan)
        assert self.plan is not None
        first = self.leader or self
        if call.computed and not self.plan.full[call.index] and first.key in first.designs:
            full = self.plan.full.copy()
            full[call.index] = True
            full[call.index + 1 :][np.flatnonzero(full[call.index + 1 :])[:1]] = False
            self.follow(first.designs[first.key][0].with_steps(full))
        super().given(call)

    def end(self) -> None:
        super().end()
        self.plan, self.steps = None, None

    def sibling(self) -> OutputPolicy:
        return BuiltInPolicy(self.budget, self.stats, self.anchor_device, self.leader or self)


class ProbingDriver(Driver):
    """The driver of a pipeline that is to be cached for a quality.

    Its first call is preceded by a probe with the same arguments. Only the call knows them: while
    it is waited for, the pipeline is of a class of the same name whose `__call__` comes here.
    """

    policy: BuiltInPolicy
    _kind: type | None = None  # the pipeline's own class, while the call is waited for

    def attach(self) -> None:
        super().attach()
        if self.policy.probed is None:
            kind = self._kind = type(self.pipe)

            @functools.wraps(kind.__call__)
            def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
                if pipe is self.pipe and self._kind:
                    self._probe(kind, args, kwargs)
                return kind.__call__(pipe, *args, **kwargs)

            names = {n: getattr(kind, n) for n in ("__module__", "__qualname__", "__doc__")}
            self.pipe.__class__ = type(kind.__name__, (kind,), names | {"__call__": call})

    def detach(self) -> None:
        super().detach()
        if self._kind:
            self.pipe.__class__, self._kind = self._kind, None

    def _probe(self, kind: type, args: tuple, kwargs: dict) -> None:
        """Find the budget for a call that is about to be made."""
        signature = inspect.signature(kind.__call__)
        call = signature.bind(self.pipe, *args, **kwargs).arguments
        for name, parameter in [*signature.parameters.items()]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                call |= call.pop(name, {})
        del call[next(iter(signature.parameters))]  # the pipeline itself
        # By name, since calibration imports the runtime.
        probing = importlib.import_module("eigencache.calibration.probe")
        self.detach()
        del self.pipe.__dict__[DRIVER]
        try:
            self.policy.probed = probing.probe(self.pipe, call, self.policy.budget.psnr)
        finally:
            self.attach()
            self.pipe.__dict__[DRIVER] = self

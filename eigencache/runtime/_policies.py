"""Policies of the driver: what sampling by a plan does at each step."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from eigencache._checks import agrees, span
from eigencache.plan import Plan, PlanError, PlanWarning
from eigencache.runtime._driver import Policy, StepCall, calling
from eigencache.runtime._guidance import is_guidance, taken
from eigencache.runtime._hooks import Call, Needs, State, forecast
from eigencache.runtime._inspection import Inspection
from eigencache.runtime._taps import map_tensors

# Where guidance is stronger than a plan's by so much, and by half as much again, built-in plans
# were nearer to full runs in 9 of 10 cases, and elsewhere in 1 of 12
# (data/benchmarks/guidance.csv).
STRONGER = 2.0


def check_guidance(plan: Plan, pipe: Any) -> None:
    """Warn by a PlanWarning if a pipeline is called with other guidance than the plan was made at.

    Most pipelines say what they were called with: `pipe.guidance_scale`. Of others the variable of
    their call tells.
    """
    if pipe is None:
        return
    frame = calling()[1]
    variables = frame.f_locals if frame else {}
    for name, made in plan.arguments.items():
        if not is_guidance(name) or isinstance(made, bool | str | None):
            continue
        called, told = getattr(pipe, name, variables.get(name)), span(made)
        if not isinstance(called, int | float):
            text = (
                f"the plan was made at {name} {told}; whether {type(pipe).__name__} is called "
                "with that is not checked, since it does not say"
            )
        elif agrees(made, called):
            continue
        else:
            text = (
                f"the plan was made at {name} {told}, called with {called:g}: what is predicted "
                f"of it does not hold; calibrate with {name}={called:g}"
            )
            strongest = max(made) if isinstance(made, list | tuple) else made
            if plan.tap == "output" and called >= max(strongest + STRONGER, 1.5 * strongest):
                text += (
                    f". At so much stronger guidance a built-in plan (full_steps="
                    f"{int(plan.full.sum())}) is usually nearer to the full run"
                )
        warnings.warn(text, PlanWarning, stacklevel=2)


def check_guided(plan: Plan, call: StepCall) -> None:
    """Warn by a PlanWarning if guidance is on where it was off in calibration, or the other way.

    Not every scale that is stated is in use: that of Qwen-Image takes a negative prompt.

    Args:
        plan: what is sampled by.
        call: of the first step.
    """
    now = taken(call)[0]
    if plan.passes and not plan.passes[0] <= now <= plan.passes[1]:
        warnings.warn(
            f"in calibration the networks took each latent {span(sorted({*plan.passes}))} times a "
            f"step, in this call it is {now:g}, as when guidance is switched on or off by a "
            "negative prompt: what is predicted of the plan does not hold; calibrate with the "
            "same arguments",
            PlanWarning, stacklevel=2,
        )  # fmt: skip


class PlanPolicy(Policy):
    """Sampling by a plan, whatever its tap: what is checked when an image begins."""

    skips = True

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps = plan, len(plan)

    def begin(self, timesteps: np.ndarray | None, pipe: Any) -> None:
        if timesteps is not None:
            self.plan.check_timesteps(timesteps)
        check_guidance(self.plan, pipe)

    def given(self, call: StepCall) -> None:
        if call.index == 0 and call.passes:
            check_guided(self.plan, call)


class OutputPolicy(PlanPolicy):
    """Sampling by a plan at the output tap: the scheduler is given forecasts at skipped steps.

    Args:
        plan: at the output tap.
        anchor_device: where outputs of full steps are kept; by default where they are made.
    """

    def __init__(self, plan: Plan, anchor_device: torch.device | None = None) -> None:
        super().__init__(plan)
        self.anchor_device = anchor_device
        self.anchors: dict[int, Any] = {}
        self.follow(plan)

    def follow(self, plan: Plan) -> None:
        """Sample by a plan from now on."""
        self.plan, self.steps, self.needs = plan, len(plan), Needs(plan.weights)

    def computes(self, step: int) -> bool:
        return bool(self.plan.full[step])

    def given(self, call: StepCall) -> None:
        super().given(call)
        step = call.index
        if not self.plan.full[step]:
            terms = self.needs.take(self.anchors, step)
            if not call.computed:
                call.output = forecast(terms, call.sample.device)
        elif self.needs.later(step):
            self.anchors[step] = map_tensors(self._kept, call.output)

    def end(self) -> None:
        self.anchors.clear()

    def held(self) -> Any:
        return self.anchors

    def sibling(self) -> "OutputPolicy":
        return OutputPolicy(self.plan, self.anchor_device)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy, since pipelines, schedulers and CUDA graphs write into what they have."""
        return tensor.to(self.anchor_device or tensor.device, copy=True)


class InnerPolicy(PlanPolicy):
    """Sampling by a plan at a tap inside the network, whose modules have hooks of their own.

    The network is called at every step. Its hooks learn from here which step it is, and which of
    the network's calls in that step: each call has anchors of its own.

    Args:
        call: which the hooks share; its plan is at any tap but the output.
        transformer: the pipeline's, which has the hooks.
        inspection: of the first step of every image.
    """

    def __init__(self, call: Call, transformer: nn.Module, inspection: Inspection) -> None:
        super().__init__(call.plan)
        self.call, self.transformer, self.inspection = call, transformer, inspection
        self.states: dict[int, State] = {}

    def is_full(self, step: int, computed: bool) -> bool:
        return bool(self.plan.full[step])

    @contextlib.contextmanager
    def running(self, step: int, denoiser: str, call: int) -> Iterator[list[Any]]:
        if denoiser != "transformer":
            if step > 0:
                raise PlanError(
                    f"the pipeline calls {denoiser} beside transformer at every step, which a plan "
                    f"at tap {self.plan.tap!r} would not skip: use tap 'output'"
                )
            yield []
            return
        if step > 0 and call not in self.states:
            raise PlanError(
                f"the pipeline begins at step {step} to call {denoiser} {call + 1} times a step, "
                f"and a plan at tap {self.plan.tap!r} has no features of that call: use tap "
                "'output'"
            )
        state = self.call.state = self.states.setdefault(call, State())
        state.step = step
        state.begin(bool(self.plan.full[step]))
        try:
            with self.inspection.of(state) as returned:
                yield returned
        finally:
            self.call.state = None  # where others call the network, it runs as it is

    def end(self) -> None:
        for state in self.states.values():
            state.reset()
        self.states.clear()

    def held(self) -> Any:
        return [state.held() for state in self.states.values()]

"""Policies of the driver: what sampling by a plan does at each step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eigencache.plan import Plan, PlanError
from eigencache.runtime._driver import Policy, StepCall
from eigencache.runtime._hooks import HELD, Call, State, forecast
from eigencache.runtime._taps import map_tensors


class OutputPolicy(Policy):
    """Sampling by a plan at the output tap: the scheduler is given forecasts at skipped steps.

    Args:
        plan: at the output tap.
        anchor_device: where outputs of full steps are kept; by default where they are made.
    """

    def __init__(self, plan: Plan, anchor_device: torch.device | None = None) -> None:
        self.plan, self.steps, self.anchor_device = plan, len(plan), anchor_device
        weights = plan.weights
        # The anchors of each step, with weights; and the last step that needs each as an anchor.
        self.rows = [[(int(a), float(row[a])) for a in row.nonzero()[0]] for row in weights]
        self.last_use = [int(max([a, *weights[:, a].nonzero()[0]])) for a in range(len(plan))]
        self.anchors: dict[int, Any] = {}

    def begin(self, timesteps: np.ndarray | None) -> None:
        if timesteps is not None:
            self.plan.check_timesteps(timesteps)

    def computes(self, step: int) -> bool:
        return bool(self.plan.full[step])

    def given(self, call: StepCall) -> None:
        step = call.index
        if self.plan.full[step]:
            if self.last_use[step] > step:
                self.anchors[step] = map_tensors(self._kept, call.output)
        elif not call.computed:
            terms = [(self.anchors[a], weight) for a, weight in self.rows[step]]
            call.output = forecast(terms, call.sample.device)
        for a in [a for a in self.anchors if self.last_use[a] <= step]:
            del self.anchors[a]

    def end(self) -> None:
        self.anchors.clear()

    def held(self) -> Any:
        return self.anchors

    def sibling(self) -> "OutputPolicy":
        return OutputPolicy(self.plan, self.anchor_device)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor to keep: on the anchors' device, and no memory alive but its own."""
        tensor = tensor.to(self.anchor_device)
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class InnerPolicy(Policy):
    """Sampling by a plan at a tap inside the network, whose modules have hooks of their own.

    The network is called at every step. Its hooks learn from here which step it is, and which of
    the network's calls in that step: each call has anchors of its own.

    Args:
        plan: at any tap but the output.
        call: which the hooks share.
        network: the name of the network that has the hooks.
        check: raises an error if the hooks are not all in place any more.
    """

    def __init__(self, plan: Plan, call: Call, network: str, check: Callable[[], None]) -> None:
        self.plan, self.steps, self.call, self.network = plan, len(plan), call, network
        self.check, self.states = check, dict[int, State]()

    def begin(self, timesteps: np.ndarray | None) -> None:
        if timesteps is not None:
            self.plan.check_timesteps(timesteps)

    def is_full(self, step: int, computed: bool) -> bool:
        return bool(self.plan.full[step])

    def enter(self, step: int, denoiser: str, call: int) -> None:
        if denoiser != self.network:
            if step > 0:
                raise PlanError(
                    f"the pipeline calls {denoiser} beside {self.network} at every step, which a "
                    f"plan at tap {self.plan.tap!r} would not skip: use tap 'output'"
                )
            return
        if step == 0 and call == 0:
            self.check()
        if step > 0 and call not in self.states:
            raise PlanError(
                f"the pipeline begins at step {step} to call {denoiser} {call + 1} times a step, "
                f"and a plan at tap {self.plan.tap!r} has no features of that call: use tap "
                "'output'"
            )
        state = self.call.state = self.states.setdefault(call, State())
        state.step = step
        if self.plan.full[step]:
            state.seen.clear()
            state.refreshed.clear()

    def end(self) -> None:
        for state in self.states.values():
            state.reset()
        self.states.clear()

    def held(self) -> Any:
        return [[vars(state)[name] for name in HELD] for state in self.states.values()]

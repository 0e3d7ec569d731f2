"""Policies of the driver: what sampling by a plan does at each step."""

from typing import Any

import numpy as np
import torch

from eigencache.driver import Policy, StepCall
from eigencache.hooks import forecast
from eigencache.plan import Plan
from eigencache.taps import map_tensors


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

    def sibling(self) -> "OutputPolicy":
        return OutputPolicy(self.plan, self.anchor_device)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor to keep: on the anchors' device, and no memory alive but its own."""
        tensor = tensor.to(self.anchor_device)
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor

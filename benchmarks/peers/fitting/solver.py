"""What the learned solvers have in common: a linear combination of the network's outputs.

A solver with n network calls is n sigmas and two arrays of coefficients:

    x_{i+1} = start_i x_0 + sum_{j <= i} weights_ij v_j,    v_j = v(x_j, sigmas_j),   0 <= i < n

with x_0 the noise and x_n the final latents. This is the form of BNS (arXiv 2403.01329, equation
of the non-stationary solver). Euler, OLSS, DSS, GITS and every plan of EigenCache at the output
tap are special cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)

from eigencache.kernel import step_sizes
from eigencache.plan import Plan


@dataclass(frozen=True)
class Solver:
    """A solver.

    Attributes:
        sigmas: float64 `[n]`, the noise levels at which the network is called, from 1 to 0.
        start: float64 `[n]`, the coefficients of the noise.
        weights: float64 `[n, n]`, the coefficients of the outputs; zero above the diagonal.
    """

    sigmas: np.ndarray
    start: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        """The number of network calls."""
        return len(self.sigmas)

    @classmethod
    def from_steps(cls, sigmas: Sequence[float], steps: np.ndarray) -> Solver:
        """Return the solver that moves by `steps[i] @ outputs` in step i, from where it is."""
        return cls(np.asarray(sigmas, float), np.ones(len(steps)), np.cumsum(np.tril(steps), 0))

    @classmethod
    def euler(cls, sigmas: Sequence[float]) -> Solver:
        """Return Euler's method; `sigmas`, of n + 1, include the last."""
        return cls.from_steps(sigmas[:-1], np.diag(np.diff(sigmas)))

    @classmethod
    def from_plan(cls, plan: Plan) -> Solver:
        """Return a plan at the output tap under an Euler sampler of flow matching."""
        full = np.flatnonzero(plan.full)
        moved = np.cumsum(step_sizes(plan.timesteps)[:, None] * plan.weights[:, full], axis=0)
        moved += np.cumsum(np.diag(step_sizes(plan.timesteps))[:, full], axis=0)
        ends = np.append(full[1:], len(plan)) - 1
        return cls(plan.timesteps[full] / 1000, np.ones(len(full)), moved[ends])

    def as_dict(self) -> dict[str, list]:
        """Return the coefficients as lists, for JSON."""
        return {name: getattr(self, name).tolist() for name in ("sigmas", "start", "weights")}

    @classmethod
    def from_dict(cls, lists: dict[str, list]) -> Solver:
        """Return the solver that `as_dict` was called on."""
        return cls(*(np.array(lists[name]) for name in ("sigmas", "start", "weights")))


def integrate(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], noise: torch.Tensor,
    sigmas: torch.Tensor, start: torch.Tensor, weights: torch.Tensor,
) -> list[torch.Tensor]:  # fmt: skip
    """Return the latents after each step; gradients flow to the coefficients and to the sigmas."""
    latents, outputs = [noise], []
    for i in range(len(sigmas)):
        outputs.append(velocity(latents[-1], sigmas[i]))
        moved = torch.tensordot(weights[i, : i + 1], torch.stack(outputs), dims=1)
        latents.append(start[i] * noise + moved)
    return latents[1:]


class GridScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler's method of diffusers at sigmas of its own, whatever sigmas it is asked for."""

    @classmethod
    def by(cls, own, sigmas: Sequence[float]):
        """Return the scheduler.

        Args:
            own: a pipeline's scheduler, whose other settings are kept.
            sigmas: of n + 1, the last included.
        """
        made = cls.from_config(own.config)
        made.stated = sigmas
        return made

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        """Start over; of the arguments only `device` counts."""
        self.sigmas = torch.tensor(self.stated, dtype=torch.float32, device=device)
        self.timesteps = 1000 * self.sigmas[:-1]
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None


class LinearScheduler(GridScheduler):
    """A scheduler of diffusers that samples by a `Solver`."""

    @classmethod
    def by(cls, own, solver: Solver):
        """Return the scheduler, as `GridScheduler.by` does."""
        made = super().by(own, [*solver.sigmas, 0.0])
        made.solver = solver
        return made

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        """Start over; of the arguments only `device` counts."""
        super().set_timesteps(device=device)
        self._noise, self._outputs = None, []

    def step(self, model_output, timestep, sample, return_dict=True, **_):
        """Return the latents after the next step."""
        if self._noise is None:
            self._noise = sample
        self._outputs.append(model_output)
        i = len(self._outputs) - 1
        made = float(self.solver.start[i]) * self._noise
        for weight, output in zip(self.solver.weights[i], self._outputs, strict=False):
            made = made + float(weight) * output
        made = made.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(made) if return_dict else (made,)

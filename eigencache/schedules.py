"""Schedules: which steps are computed in full.

A schedule is a small immutable object with one method,

    full(timesteps, predictor, matrix=None) -> bool [T]

which may look at the predictor that will fill the gaps and at the kernel matrix (float64 [T, T];
None unless the schedule's `kernel` is True). A budget, `full_steps`, is kept to the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from eigencache.design import optimal_steps
from eigencache.predictors import Predictor


class Schedule(Protocol):
    """What every schedule offers; see the module's text for `full`."""

    kernel: ClassVar[bool]

    def full(self, timesteps, predictor: Predictor, matrix=None) -> np.ndarray: ...


@dataclass(frozen=True)
class Interval:
    """The first `first` steps, then one step in every `every` (FORA, TaylorSeer, HiCache ...).

    State `every` as published, or `full_steps` and have the shortest interval found that gives
    exactly that many.

    Raises:
        ValueError: both or none are stated; no interval gives the budget (in `full`).
    """

    full_steps: int | None = None
    every: int | None = None
    first: int = 3
    kernel: ClassVar[bool] = False

    def __post_init__(self):
        if (self.full_steps is None) == (self.every is None):
            raise ValueError("state either full_steps or every, not both")
        if self.first < 1 or (self.every is not None and self.every < 1):
            raise ValueError("first and every must be at least 1")

    def full(self, timesteps, predictor, matrix=None) -> np.ndarray:
        count = len(timesteps)
        if self.every is not None:
            return self._grid(count, self.every)
        reached = {int(self._grid(count, n).sum()): n for n in range(count, 0, -1)}
        if self.full_steps not in reached:
            raise ValueError(
                f"no interval gives {self.full_steps} full steps of {count} with the first "
                f"{self.first} full; possible are {sorted(reached)}"
            )
        return self._grid(count, reached[self.full_steps])

    def _grid(self, count: int, every: int) -> np.ndarray:
        steps = np.arange(count)
        first = min(self.first, count)
        return (steps < first) | ((steps - first + 1) % every == 0)


@dataclass(frozen=True)
class Steps:
    """Exactly the steps named.

    Raises:
        ValueError: a step lies outside the sampler's (in `full`).
    """

    steps: Sequence[int]
    kernel: ClassVar[bool] = False

    def full(self, timesteps, predictor, matrix=None) -> np.ndarray:
        count = len(timesteps)
        if not all(0 <= step < count for step in self.steps):
            raise ValueError(f"steps {list(self.steps)} are not all among 0 to {count - 1}")
        full = np.zeros(count, bool)
        full[list(self.steps)] = True
        return full


@dataclass(frozen=True)
class Optimal:
    """The `full_steps` steps that minimise the predictor's expected error (`eigencache.design`)."""

    full_steps: int
    kernel: ClassVar[bool] = True

    def full(self, timesteps, predictor, matrix=None) -> np.ndarray:
        steps = optimal_steps(predictor, timesteps, matrix, [self.full_steps])[self.full_steps]
        return Steps(steps).full(timesteps, predictor)

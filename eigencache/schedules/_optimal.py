"""Optimal design."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eigencache.design import optimal_steps


@dataclass(frozen=True)
class Optimal:
    """The `full_steps` steps that minimise the predictor's expected error (`eigencache.design`)."""

    full_steps: int
    kernel: ClassVar[bool] = True

    def full(self, timesteps, predictor, kernel=None) -> np.ndarray:
        budget = [self.full_steps]
        steps = optimal_steps(predictor, timesteps, kernel.matrix(), budget)[self.full_steps]
        full = np.zeros(len(timesteps), bool)
        full[list(steps)] = True
        return full

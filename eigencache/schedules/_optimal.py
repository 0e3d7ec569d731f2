"""Optimal design."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.design import optimal_steps
from eigencache.kernel import Kernel
from eigencache.predictors import Predictor
from eigencache.schedules._streams import needed


@dataclass(frozen=True)
class Optimal:
    """The `full_steps` steps that minimise the predictor's expected error (`eigencache.design`).

    Attributes:
        full_steps: the budget, from 1 to all steps.

    Raises:
        ValueError: in `full`: the budget is out of range, the predictor's window is None or too
            large for the tables, or there is no kernel.
    """

    full_steps: int
    kernel: ClassVar[bool] = True

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        kernel = needed(kernel)
        steps = optimal_steps(
            predictor, timesteps, kernel.matrix(), [self.full_steps], kernel.step_sizes,
            kernel.switches,
        )[self.full_steps]  # fmt: skip
        full = np.zeros(np.size(timesteps), bool)
        full[list(steps)] = True
        return full

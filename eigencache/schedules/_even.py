"""Steps evenly apart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.design import evenly
from eigencache.kernel import Kernel
from eigencache.predictors import Predictor


@dataclass(frozen=True)
class Even:
    """As many steps evenly apart, as plain sampling with fewer steps has them.

    Attributes:
        full_steps: the budget, from 1 to all steps.

    Raises:
        ValueError: in `full`: the budget is out of range.
    """

    full_steps: int
    kernel: ClassVar[bool] = False

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        count = np.size(timesteps)
        if not 1 <= self.full_steps <= count:
            raise ValueError(f"full_steps {self.full_steps} must lie between 1 and {count}")
        return evenly(self.full_steps, count)

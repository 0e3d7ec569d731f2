"""Steps that are listed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.kernel import Kernel
from eigencache.predictors import Predictor


@dataclass(frozen=True)
class Steps:
    """Exactly the listed steps (for plans by hand; no method of `eigencache.METHODS` uses it).

    Attributes:
        steps: their indices, counted from 0.

    Raises:
        ValueError: a step lies outside the sampler's (in `full`).
    """

    steps: Sequence[int]
    kernel: ClassVar[bool] = False

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        count = np.size(timesteps)
        if not all(0 <= step < count for step in self.steps):
            raise ValueError(f"steps {list(self.steps)} are not all among 0 to {count - 1}")
        full = np.zeros(count, bool)
        full[list(self.steps)] = True
        return full

"""Reuse of the latest feature."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.predictors._predictor import Matrix


@dataclass(frozen=True)
class Reuse:
    """Repeat the latest full step's feature (FORA, arXiv 2407.01425)."""

    kernel: ClassVar[bool] = False
    window: ClassVar[int] = 1

    def weights(
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
    ) -> np.ndarray:
        weights = np.zeros(np.broadcast_shapes(np.shape(past), (*np.shape(step), 1)))
        weights[..., -1] = 1
        return weights

"""Predictors: with which weights a skipped step is forecast from the full steps before it.

A predictor is a small immutable object with one method,

    weights(past, step, timesteps, matrix) -> float64 [..., m]

    past:   int [..., m], the last `m <= window` full steps, ascending;
    step:   int [...], the step to forecast, later than all of `past`;
    timesteps: float64 [T], the sampler's timesteps (of flow matching: 1000 sigma);
    matrix: float64 [T, T], the kernel of the stream; None for a predictor with `kernel = False`.

Leading dimensions broadcast, so that a planner can ask for every window at once. The forecast of
the feature is `sum_i weights[i] * f[past[i]]`. When fewer than `window` full steps exist yet, a
predictor does the best that it can with those; a `window` of None takes them all.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from eigencache.predictors._chebyshev import Chebyshev
from eigencache.predictors._hicache import HiCache
from eigencache.predictors._kriging import Kriging
from eigencache.predictors._newton import Newton
from eigencache.predictors._reuse import Reuse
from eigencache.predictors._taylor import Taylor, TaylorScaled

__all__ = [
    "Chebyshev",
    "HiCache",
    "Kriging",
    "Newton",
    "Predictor",
    "Reuse",
    "Taylor",
    "TaylorScaled",
]


class Predictor(Protocol):
    """What every predictor offers.

    Attributes:
        kernel: whether it needs the matrix of a kernel.
    """

    kernel: ClassVar[bool]

    @property
    def window(self) -> int | None:
        """How many full steps it draws on at most; None for all of them."""

    def weights(
        self,
        past: ArrayLike,
        step: ArrayLike,
        timesteps: ArrayLike,
        matrix: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the weights of a forecast over the full steps that it is made from.

        Args:
            past: int `[..., m]`, the last `m` full steps, ascending.
            step: int `[...]`, the step to forecast, later than all of `past`.
            timesteps: float `[T]`, the sampler's.
            matrix: float64 `[T, T]`, the kernel of the stream; None where none is needed.

        Returns:
            float64 `[..., m]`, broadcast over the leading dimensions.
        """
        ...

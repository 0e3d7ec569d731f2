"""What every predictor offers."""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

Matrix = np.ndarray | None  # of a kernel's stream; None where a predictor needs none


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
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
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

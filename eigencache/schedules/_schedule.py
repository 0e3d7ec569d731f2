"""What every schedule offers."""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from eigencache.kernel import Kernel
from eigencache.predictors import Predictor


class Schedule(Protocol):
    """What every schedule offers.

    Attributes:
        kernel: whether it needs a kernel.
    """

    kernel: ClassVar[bool]

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        """Return which steps are computed in full; step 0 always is.

        Args:
            timesteps: float `[T]`, the sampler's.
            predictor: what will fill the gaps.
            kernel: of the model; None where none is needed.

        Returns:
            bool `[T]`.

        Raises:
            ValueError: the budget cannot be met, or a kernel is needed and missing.
        """
        ...

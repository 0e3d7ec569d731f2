"""Schedules: which steps are computed in full.

A schedule is a small immutable object with one method,

    full(timesteps, predictor, kernel=None) -> bool [T]

which may look at the predictor that will fill the gaps and at the kernel (`eigencache.kernel`;
None unless the schedule's own `kernel` is True). A budget, `full_steps`, is kept to the step.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from eigencache.kernel import Kernel
from eigencache.predictors import Predictor
from eigencache.schedules._greedy import Greedy
from eigencache.schedules._interval import Interval
from eigencache.schedules._optimal import Optimal
from eigencache.schedules._steps import Steps
from eigencache.schedules._variance import Variance

__all__ = ["Greedy", "Interval", "Optimal", "Schedule", "Steps", "Variance"]


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

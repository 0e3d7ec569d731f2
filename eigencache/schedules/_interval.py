"""A fixed interval."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.kernel import Kernel
from eigencache.predictors import Predictor


@dataclass(frozen=True)
class Interval:
    """The first `first` steps, then one step in every `every` (FORA, TaylorSeer, HiCache ...).

    Set `every`, as published, or `full_steps`: then the shortest interval that gives exactly that
    many is used.

    Attributes:
        full_steps: the budget, or None.
        every: the interval in steps, at least 1, or None.
        first: how many steps are full before the first interval, at least 1.

    Raises:
        ValueError: both or none are stated; no interval gives the budget (in `full`).
    """

    full_steps: int | None = None
    every: int | None = None
    first: int = 3
    kernel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.full_steps is None) == (self.every is None):
            raise ValueError("state either full_steps or every, not both")
        if self.first < 1 or (self.every is not None and self.every < 1):
            raise ValueError("first and every must be at least 1")

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        count = np.size(timesteps)
        if self.every is not None:
            return self._grid(count, self.every)
        reached = self.budgets(count)
        if self.full_steps not in reached:
            raise ValueError(
                f"no interval gives {self.full_steps} full steps of {count} with the first "
                f"{self.first} full; possible are {[*reached]}"
            )
        return self._grid(count, reached[self.full_steps])

    def budgets(self, count: int) -> dict[int, int]:
        """Return the numbers of full steps of `count` that intervals give, each with its interval.

        They ascend; of several intervals that give the same number it is the shortest.

        Args:
            count: of the sampler's steps.
        """
        return {int(self._grid(count, n).sum()): n for n in range(count, 0, -1)}

    def _grid(self, count: int, every: int) -> np.ndarray:
        steps = np.arange(count)
        first = min(self.first, count)
        return (steps < first) | ((steps - first + 1) % every == 0)

"""Steps evenly apart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache.design import evenly
from eigencache.kernel import Kernel
from eigencache.predictors import Predictor
from eigencache.schedules._streams import budget_among


@dataclass(frozen=True)
class Even:
    """As many steps evenly apart, as plain sampling with fewer steps has them.

    An aim moves them (`eigencache.aim`). It begins with others too, whose last gap is shorter
    (`eigencache.design.spread`).

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
        return evenly(budget_among(self.full_steps, count), count)

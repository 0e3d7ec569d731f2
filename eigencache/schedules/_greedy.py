"""The greedy log-determinant."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_real
from eigencache.kernel import Kernel
from eigencache.predictors import Predictor
from eigencache.schedules._streams import budget_among, check_patterns, streams_of


@dataclass(frozen=True)
class Greedy:
    """The steps whose features say most about all others (EigenCache, greedy schedule).

    Starting from {0}, add the step that raises `sum_l w_l logdet(I + C_SS / (jitter s)) / 2` most,
    until there are `full_steps`. s is the mean diagonal of a stream's C, so the jitter is relative.

    Attributes:
        full_steps: the budget; 0 is always among the steps.
        jitter: the relative variance of the noise that a feature is assumed to carry.
        stream_weights: patterns of stream names to w_l; see `stream_weights`.

    Raises:
        ValueError: an option is out of range; in `full`: the budget exceeds the steps, or there is
            no kernel.
    """

    full_steps: int
    jitter: float = 1e-3
    stream_weights: Mapping[str, float] = field(default_factory=dict)
    kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("jitter", self.jitter, above=0)
        check_patterns(self.stream_weights)

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        matrices, weights = streams_of(kernel, self.stream_weights)
        count = np.size(timesteps)
        budget = budget_among(self.full_steps, count)
        scale = np.trace(matrices, axis1=1, axis2=2) / count
        matrices = matrices / (self.jitter * scale[:, None, None])
        full = np.arange(count) == 0
        while full.sum() < budget:
            gains = weights @ _log_variance(matrices, full)
            full[np.argmax(np.where(full, -np.inf, gains))] = True
        return full


def _log_variance(matrices: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return what each step adds to logdet(I + C_SS), `[S, T]`: log of 1 + its variance given S."""
    known = np.flatnonzero(full)
    among = matrices[:, known][:, :, known] + np.eye(len(known))
    toward = matrices[:, known]
    explained = (toward * np.linalg.solve(among, toward)).sum(1)
    variance = np.diagonal(matrices, axis1=1, axis2=2) - explained
    return np.log1p(np.maximum(variance, 0))

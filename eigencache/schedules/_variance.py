"""A threshold on the kriging variance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_range, check_real, check_whole
from eigencache.kernel import Kernel
from eigencache.predictors import Predictor
from eigencache.schedules._streams import budget_among, check_patterns, streams_of


@dataclass(frozen=True)
class Variance:
    """Full wherever the forecast would be too uncertain (EigenCache, variance schedule).

    A step is full if the mean over streams of its kriging variance from the last `window` full
    steps, as a share of its own second moment, exceeds `tau`.

    Set `tau`, as published (0.05), or `full_steps`: then the largest tau that gives at least that
    many is used, and the least uncertain of its steps are skipped until the budget is met.

    Attributes:
        full_steps: the budget.
        tau: the threshold.
        window, jitter: of the kriging, as those of `eigencache.predictors.Kriging`.
        stream_weights: patterns of stream names to weights; see `stream_weights`.

    Raises:
        ValueError: both or none of full_steps and tau are stated, or an option is out of range;
            in `full`: the budget exceeds the steps, or there is no kernel.
    """

    full_steps: int | None = None
    tau: float | None = None
    window: int | None = 3
    jitter: float = 1e-3
    stream_weights: Mapping[str, float] = field(default_factory=dict)
    kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.full_steps is None) == (self.tau is None):
            raise ValueError("state either full_steps or tau, not both")
        if self.tau is not None:
            check_range("tau", self.tau, 0)
        if self.window is not None:
            check_whole("window", self.window, low=1)
        check_real("jitter", self.jitter, above=0)
        check_patterns(self.stream_weights)

    def full(
        self, timesteps: ArrayLike, predictor: Predictor, kernel: Kernel | None = None
    ) -> np.ndarray:
        matrices, weights = streams_of(kernel, self.stream_weights)
        if self.tau is not None:
            return self._threshold(matrices, weights, self.tau)[0]
        budget = budget_among(self.full_steps, np.size(timesteps))
        full, variance = self._threshold(matrices, weights, np.inf)
        while full.sum() < budget:  # just below the largest, another step becomes full
            tau = np.nextafter(variance[~full].max(), -np.inf)
            full, variance = self._threshold(matrices, weights, tau)
        variance[0] = np.inf  # step 0 stays
        surplus = np.argsort(np.where(full, variance, np.inf), kind="stable")
        full[surplus[: full.sum() - budget]] = False
        return full

    def _threshold(
        self, matrices: np.ndarray, weights: np.ndarray, tau: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which steps exceed tau, and the variance of each that was compared with it."""
        count = matrices.shape[-1]
        full, variance = np.zeros(count, bool), np.ones(count)
        full[0] = True
        for step in range(1, count):
            past = np.flatnonzero(full)[-self.window if self.window else 0 :]
            variance[step] = weights @ self._share(matrices, past, step)
            full[step] = variance[step] > tau
        return full, variance

    def _share(self, matrices: np.ndarray, past: np.ndarray, step: int) -> np.ndarray:
        """Return the kriging variance of a step divided by its second moment, `[S]`."""
        among, toward = matrices[:, past[:, None], past], matrices[:, past, step]
        scale = np.trace(among, axis1=1, axis2=2) / len(past)
        among = among + self.jitter * scale[:, None, None] * np.eye(len(past))
        explained = (toward * np.linalg.solve(among, toward[..., None])[..., 0]).sum(-1)
        return 1 - explained / np.maximum(matrices[:, step, step], np.finfo(float).tiny)

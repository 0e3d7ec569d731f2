"""Best linear forecasts under the kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_real, check_whole
from eigencache.predictors._predictor import Matrix


@dataclass(frozen=True)
class Kriging:
    """Best linear forecast under the kernel (EigenCache).

    w = (C_AA + jitter * s I)^-1 C_A,step over the last `window` full steps A, with s the mean
    diagonal of C_AA, so that the jitter is relative to the size of the features (for a cosine
    kernel s = 1, which is the published form).

    Attributes:
        window: how many full steps to forecast from; None for all of them.
        jitter: added to the diagonal, as a share of its mean.
        ordinary: whether the weights must sum to one.
        phases: the first step of each phase after the first, ascending. A step is then forecast
            only from full steps of its own phase; while there are none, the latest is reused.

    Raises:
        ValueError: an option is out of range; in `weights`: there is no kernel.
    """

    window: int | None = 3
    jitter: float = 1e-3
    ordinary: bool = False
    phases: Sequence[int] = ()
    kernel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window is not None:
            check_whole("window", self.window, low=1)
        check_real("jitter", self.jitter, above=0)
        if not isinstance(self.ordinary, bool):
            raise ValueError(f"ordinary must be true or false, got {self.ordinary!r}")
        if isinstance(self.phases, str) or not isinstance(self.phases, Sequence):
            raise ValueError(f"phases must be a list of steps, got {self.phases!r}")
        for start in self.phases:
            check_whole("phases", start, low=1)
        if list(self.phases) != sorted(set(self.phases)):
            raise ValueError(f"phases must be ascending, got {list(self.phases)}")

    def weights(
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
    ) -> np.ndarray:
        if matrix is None:
            raise ValueError("kriging needs the matrix of a kernel: calibrate one first")
        past, step = np.asarray(past), np.asarray(step)
        past = np.broadcast_to(past, np.broadcast_shapes(past.shape, (*step.shape, 1)))
        among = matrix[past[..., :, None], past[..., None, :]]
        toward = matrix[past, step[..., None]]
        if not self.phases:
            return self._solve(among, toward, np.ones(past.shape))
        known = self._phase(past) == self._phase(step)[..., None]
        lost = ~known.any(-1)
        known[..., -1] |= lost
        weights = self._solve(
            np.where(known[..., :, None] & known[..., None, :], among, 0),
            np.where(known, toward, 0),
            known.astype(np.float64),
        )
        weights[lost] = np.eye(past.shape[-1])[-1]
        return weights

    def _solve(self, among: np.ndarray, toward: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the weights; an anchor that is not `known` (0, not 1) has zeros and weighs 0."""
        scale = np.trace(among, axis1=-2, axis2=-1) / known.sum(-1)
        among = among + self.jitter * scale[..., None, None] * np.eye(known.shape[-1])
        if not self.ordinary:
            return np.linalg.solve(among, toward[..., None])[..., 0]
        solved = np.linalg.solve(among, np.stack([toward, known], -1))
        free, unit = solved[..., 0], solved[..., 1]
        surplus = (1 - free.sum(-1)) / unit.sum(-1)
        return free + surplus[..., None] * unit

    def _phase(self, steps: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.asarray(self.phases), steps, side="right")

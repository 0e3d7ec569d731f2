"""How built-in plans forecast: each full step corrects the forecasts of the gap before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eigencache.design import traced
from eigencache.predictors import Kriging


@dataclass(frozen=True)
class Correcting:
    """How built-in plans forecast: by ordinary kriging from two full steps, with correction.

    When a full step is computed, it tells how wrong the forecasts of the gap before it were. The
    best estimate of what that gap should have moved the latents by is corrected by it, and the
    difference is made up for in the next gap.

    In open loop that would be exact; but the full step was computed at latents that were already
    wrong by e. With g the level of noise, its output is then off by some Jacobian times e / g,
    which is not known: it counts as noise of the size `feedback` e / g in the observation.

    Attributes:
        jitter: added to the diagonal when weights are solved for, as a share of the outputs' size.
        feedback: as above.
        ahead: the share with which the error of a gap before its correction counts in the choice
            of steps, beside the error after it.
    """

    jitter: float = 1e-6
    feedback: float = 4.0
    ahead: float = 0.3

    def steps(
        self, matrix: np.ndarray, levels: np.ndarray, sizes: np.ndarray, budget: int
    ) -> tuple[int, ...]:
        """Return the full steps that make the sum of the gaps' expected errors smallest.

        Args:
            matrix: float64 `[T, T]`, the second moments of outputs.
            levels: float64 `[T]`, the noise level at each step, 1 to 0.
            sizes: float64 `[T]`, by how much the latents move per unit of each step's output.
            budget: how many there are, 1 to T.
        """
        count = len(matrix)
        if budget == 1:
            return (0,)
        second = np.full((count, count, count + 1), np.inf)
        for last in range(1, count):
            for before in range(last):
                second[before, last] = self._gaps((before, last), matrix, levels, sizes)
        value = np.full((count, count), np.inf)  # by the last two full steps
        value[0] = self._gaps((0,), matrix, levels, sizes)[:count]
        dropped = {}
        for used in range(3, budget + 1):
            total = value[..., None] + second[..., :count]
            dropped[used] = total.argmin(0)
            value = total.min(0)
        state = np.unravel_index(np.argmin(value + second[..., count]), value.shape)
        return traced(state, dropped, budget, 2)

    def _gaps(
        self, past: tuple[int, ...], matrix: np.ndarray, levels: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Return the error of a gap behind some full steps, by where it ends: float64 `[T + 1]`."""
        count, last = len(matrix), past[-1]
        errors = np.full(count + 1, np.inf)
        errors[last + 1] = 0.0
        later = np.arange(last + 1, count)
        if not len(later):
            return errors
        among = self._residuals(past, later, matrix)
        # Row k: the gap that skips k + 1 steps.
        moved = np.cumsum(sizes[later][:, None] * among, axis=0)  # with each residual
        square = np.cumsum(sizes[later][:, None] * moved.T, axis=0).diagonal()
        square = np.maximum(square, 0)
        errors[count] = np.sqrt(square[-1])
        if len(later) > 1:
            ends = later[1:]
            toward = moved[np.arange(len(ends)), np.arange(1, len(later))]
            seen = self._seen(among.diagonal()[1:], square[:-1], levels[ends], matrix)
            left = np.maximum(square[:-1] - toward**2 / seen, 0)
            errors[ends] = np.sqrt(left) + self.ahead * np.sqrt(square[:-1])
        return errors

    def _seen(
        self, variance: np.ndarray, error: np.ndarray, level: np.ndarray, matrix: np.ndarray
    ) -> np.ndarray:
        """Return the variance of what a full step tells of the gap before it."""
        feedback = self.feedback**2 * error / np.maximum(level, 0.02) ** 2
        return variance + feedback + self.jitter * np.diag(matrix).mean()

    def _weights(self, past: Sequence[int], steps: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return float64 `[len(steps), len(past)]`."""
        predictor = Kriging(len(past), self.jitter, ordinary=True)
        return predictor.weights(np.array(past), steps, np.zeros(len(matrix)), matrix)

    def _residuals(self, past: Sequence[int], steps: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return the second moments among what forecasts of some steps are wrong by."""
        rows = self._rows(past, steps, matrix)
        return rows @ matrix @ rows.T

    def _rows(self, past: Sequence[int], steps: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return steps less their forecasts, as weights of all steps: `[len(steps), T]`."""
        rows = np.zeros((len(steps), len(matrix)))
        rows[np.arange(len(steps)), steps] = 1
        rows[:, past] -= self._weights(past, steps, matrix)
        return rows

    def weights(
        self, full: np.ndarray, matrix: np.ndarray, levels: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Return the weights of a plan with some full steps, float64 `[T, T]`.

        Args:
            full: bool `[T]`.
            matrix, levels, sizes: as for `steps`.
        """
        weights = np.zeros(matrix.shape)
        anchors = np.flatnonzero(full).tolist()
        owed = np.zeros(len(matrix))  # to the latents, as weights of the outputs
        for i, (step, end) in enumerate(pairwise([*anchors, len(full)])):
            if i and anchors[i - 1] + 1 < step:
                skipped = np.arange(anchors[i - 1] + 1, step)
                rows = self._rows(anchors[max(0, i - 2) : i], np.append(skipped, step), matrix)
                moved, seen = sizes[skipped] @ rows[:-1], rows[-1]
                variance = self._seen(
                    seen @ matrix @ seen, moved @ matrix @ moved, levels[step], matrix
                )
                owed += (moved @ matrix @ seen) / variance * seen
            gap = np.arange(step + 1, end)
            if len(gap):
                past = anchors[max(0, i - 1) : i + 1]
                weights[gap[:, None], past] = self._weights(past, gap, matrix)
                weights[gap] += owed / sizes[gap].sum()
                owed[:] = 0
        return weights

"""Aim: each gap ends where the full run would be, as far as the full steps so far can tell.

A predictor forecasts every skipped step by itself, and its errors stay in the latents. But the next
full step shows how wrong the forecasts before it were, and the gap behind it can make up for that.

Let the full run move the latents by m_t . f before step t, with f its outputs `[T]` and m_t the
sizes of the steps before t. The cached sampler has moved them by p_t . y, with y the outputs of its
own full steps. It is then off by e_t = p_t . y - m_t . f, and the network's output with it. The
model of that is

    y_t = f_t + (decay / r_t - growth / d_t) e_t + noise,

with white noise of variance distrust^2 E[e_t^2] / r_t^2, where r_t is how far the latents still
have to move per unit of the outputs, the noise level in flow matching, and d_t how far they have
moved. An error that the network takes for noise is removed with it, and shrinks as r does: that is
a decay of 1. One that it takes for data is enlarged with the data, and grows as d does: a growth of
1. By default it is half and half, so that errors grow in the first half of the way and shrink in
the second. What the network makes of the rest is not known, and counts as noise. So all y are
linear in f, whose second moments are the kernel, and the best linear estimate of m_t . f from the
full steps before t follows, with the variance of its error. This is kriging of an integral from
disturbed observations; without the disturbance it is least squares on undisturbed runs, as in OLSS
(arXiv 2305.14677).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eigencache._checks import check_range, check_real

# How far a full step is moved at once in the search for better ones.
REACH = 3
# The least share of all the way that r_t is taken to be; and d_t, since where there is hardly any
# data, an error cannot look like it.
LEAST, LEAST_GONE = 1e-3, 0.1


@dataclass(frozen=True)
class Aim:
    """How a plan makes up for the errors of its own forecasts.

    Attributes:
        decay, growth: as above, 0 to 1.
        distrust: as above, at least 0.
        final: how much the error of the final latents counts in the choice of full steps beside
            those at the end of each gap, as a multiple of their number.
        jitter: added to the diagonal, as a share of its mean in the kernel.
        ordinary: whether the noise has to move as in the full run. Outputs hold it with coefficient
            one, whatever the kernel says.

    Raises:
        ValueError: an option is out of range.
    """

    decay: float = 0.5
    growth: float = 0.5
    distrust: float = 0.5
    final: float = 1.0
    jitter: float = 1e-6
    ordinary: bool = True

    def __post_init__(self) -> None:
        check_range("decay", self.decay, 0, 1)
        check_range("growth", self.growth, 0, 1)
        check_range("distrust", self.distrust, 0)
        check_range("final", self.final, 0)
        check_real("jitter", self.jitter, above=0)
        if not isinstance(self.ordinary, bool):
            raise ValueError(f"ordinary must be true or false, got {self.ordinary!r}")

    def targets(
        self, steps: Sequence[int], matrix: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the latents are to have moved by at the end of each gap, and its error.

        Args:
            steps: the n full steps, ascending, from 0 on.
            matrix: float64 `[T, T]`, the second moments of the outputs.
            sizes: float64 `[T]`, by how much the final latents move per unit of each step's output.

        Returns:
            Float64 `[n, n]`, p_t at the end t of the gap behind each full step, as weights of the
            full steps' outputs; and float64 `[n]`, E[e_t^2] there.
        """
        return self._targets(steps, _Moves(matrix, sizes))

    def _targets(self, steps: Sequence[int], moves: "_Moves") -> tuple[np.ndarray, np.ndarray]:
        run, ends = _Run(self, len(steps), moves), [*steps[1:], len(moves.sizes)]
        planned = np.zeros((len(steps), len(steps)))
        for i, (step, end) in enumerate(zip(steps, ends, strict=True)):
            run.compute(step)
            if end > step + 1:
                planned[i, : i + 1] = run.estimate(end)
            else:  # nothing is skipped, so nothing can be made up for
                planned[i], planned[i, i] = planned[i - 1] if i else 0, moves.sizes[step]
            run.reach(end, planned[i, : i + 1])
        return planned, run.errors

    def weights(
        self, full: np.ndarray, base: np.ndarray, matrix: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Return the weights of a plan, float64 `[T, T]`: all of a gap are moved alike.

        Args:
            full: bool `[T]`.
            base: float64 `[T, T]`, the weights of the forecasts that are corrected.
            matrix, sizes: as for `targets`.
        """
        steps, weights = np.flatnonzero(full).tolist(), base.copy()
        planned, _ = self.targets(steps, matrix, sizes)
        moved = np.zeros(len(steps))
        for i, (step, end) in enumerate(pairwise([*steps, len(full)])):
            gap = slice(step + 1, end)
            moved[i] += sizes[step]
            reach = sizes[gap].sum()
            # Where a scheduler does not look at the outputs of a gap, nothing can be done there.
            if np.abs(reach) > LEAST * np.abs(sizes[gap]).sum():
                owed = planned[i] - moved - sizes[gap] @ weights[gap, steps]
                weights[gap, steps] += owed / reach
            moved += sizes[gap] @ weights[gap, steps]
        return weights

    def steps(
        self, start: Sequence[int], matrix: np.ndarray, sizes: np.ndarray, kept: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Return better full steps, by moving one at a time while the expected error falls.

        Args:
            start: the full steps to begin with; as many are returned.
            matrix, sizes: as for `targets`.
            kept: steps that stay full.
        """
        moves = _Moves(matrix, sizes)

        def cost(steps: Sequence[int]) -> float:
            errors = np.sqrt(self._targets(steps, moves)[1])
            return float(errors.sum() + self.final * len(errors) * errors[-1])

        best, least, before = tuple(start), cost(start), None
        while best != before:
            before = best
            for i in range(1, len(best)):
                for place in self._places(best, i, len(matrix)) if best[i] not in kept else ():
                    moved = (*best[:i], place, *best[i + 1 :])
                    found = cost(moved)
                    if found < least * (1 - 1e-9):
                        best, least = moved, found
        return best

    def _places(self, steps: tuple[int, ...], i: int, count: int) -> list[int]:
        low, high = steps[i - 1], (*steps, count)[i + 1]
        near = range(steps[i] - REACH, steps[i] + REACH + 1)
        return [place for place in near if low < place < high and place != steps[i]]


class _Moves:
    """How the full run moves the latents, whichever steps are full.

    Args:
        matrix, sizes: as for `Aim.targets`.

    Attributes:
        rows: float64 `[T + 1, T]`, m_t of each step and of the end.
        across: float64 `[T, T + 1]`, E[f_s m_t . f].
        squares: float64 `[T + 1]`, E[(m_t . f)^2].
        left, gone: float64 `[T]`, r_t and d_t.
        scale: the mean square of an output.
    """

    def __init__(self, matrix: np.ndarray, sizes: np.ndarray) -> None:
        self.matrix, self.sizes, self.scale = matrix, sizes, np.diag(matrix).mean()
        self.rows = np.tri(len(sizes) + 1, len(sizes), -1) * sizes
        self.across = matrix @ self.rows.T
        self.squares = np.einsum("ts,st->t", self.rows, self.across)
        left = -np.cumsum(sizes[::-1])[::-1]
        least = LEAST * np.abs(left).max()
        self.left = np.where(np.abs(left) < least, np.copysign(least, left), left)
        # With the sign that all the way has, left[0].
        gone = np.maximum(np.abs(left[0] - left), LEAST_GONE * np.abs(left[0]))
        self.gone = np.copysign(gone, left[0])


class _Run:
    """The second moments of a cached sampling, full step by full step.

    Args:
        aim: what is supposed of errors.
        count: how many full steps there will be.
        moves: of the full run.

    Attributes:
        errors: float64 `[count]`, E[e_t^2] at the ends of the gaps so far.
    """

    def __init__(self, aim: Aim, count: int, moves: _Moves) -> None:
        self.aim, self.full, self.errors = aim, moves, np.zeros(count)
        # y of each full step: as weights of f, and of the noises, which have these variances.
        self.outputs, self.own = np.zeros((count, len(moves.sizes))), np.eye(count)
        self.noise = np.zeros(count)
        self.done, self.moved = 0, np.zeros(0)

    def compute(self, step: int) -> None:
        """Compute a step in full, where the last gap has led."""
        i, left, gone = self.done, self.full.left[step], self.full.gone[step]
        share = self.aim.decay / left - self.aim.growth / gone
        self.outputs[i, step] = 1
        if i:
            self.outputs[i] += share * (self.moved @ self.outputs[:i] - self.full.rows[step])
            self.own[i, :i] = share * self.moved @ self.own[:i, :i]
            self.noise[i] = (self.aim.distrust / left) ** 2 * self.errors[i - 1]
        self.done += 1
        self.rows = self.outputs[: self.done]
        own = self.own[: self.done]
        self.among = self.rows @ self.full.matrix @ self.rows.T + (own * self.noise) @ own.T

    def estimate(self, end: int) -> np.ndarray:
        """Return where to move the latents by `end`, as weights of the full steps so far.

        That is what they were moved by, and the best linear estimate of what is missing.
        """
        moved, unit = np.append(self.moved, 0.0), self.rows.sum(1)
        floor = self.aim.jitter * self.full.scale * np.eye(self.done)
        toward = self.rows @ self.full.across[:, end] - self.among @ moved
        free, even = np.linalg.solve(self.among + floor, np.stack([toward, unit], axis=1)).T
        if self.aim.ordinary:
            missing = self.full.rows[end].sum() - unit @ (moved + free)
            free = free + missing / (unit @ even) * even
        return moved + free

    def reach(self, end: int, moved: np.ndarray) -> None:
        """End a gap where the latents have been moved by `moved . y`, float64 `[done]`."""
        toward = self.rows @ self.full.across[:, end]
        error = moved @ self.among @ moved - 2 * moved @ toward + self.full.squares[end]
        self.errors[self.done - 1], self.moved = max(error, 0), moved

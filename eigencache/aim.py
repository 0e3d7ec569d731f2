"""Aim: each gap ends where the full run would be, as far as the full steps so far can tell.

A predictor forecasts every skipped step by itself, and its errors stay in the latents. But the next
full step shows how wrong the forecasts before it were, and the gap behind it can make up for that.

Let the full run move the latents by m_t . f before step t, with f its outputs `[T]` and m_t the
sizes of the steps before t. The cached sampler has moved them by p_t . y, with y the outputs of its
own full steps. It is then off by e_t = p_t . y - m_t . f, and the network's output with it. The
model of that is

    y_t = f_t + pull_t e_t + noise,

with white noise of variance scatter_t^2 E[e_t^2]. How a network answers errors, its pull and its
scatter, is measured in calibration (`eigencache.calibration.recording.Responses`). With a pull of
1 / s at noise level s it takes the error for noise and removes it; with a negative one it enlarges
the error; and scatter is what cannot be foretold, much of it under strong guidance. So all y are
linear in f, whose second moments are the kernel, and the best linear estimate of m_t . f from the
full steps before t follows, with the variance of its error. This is kriging of an integral from
disturbed observations; without pull and scatter it is least squares on undisturbed runs, as in OLSS
(arXiv 2305.14677).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_range, check_real

# How far full steps are moved at once in the search for better ones.
REACH = 3
# Where the outputs of a gap move the latents by a smaller share than this, nothing is corrected.
LEAST = 1e-3


class FullRun:
    """How the full runs of one or several models move the latents, and how errors disturb them.

    Args:
        matrices: float64 `[S, T, T]` or `[T, T]`, the second moments of the outputs of S models.
        sizes: float64 `[T]`, by how much the final latents move per unit of each step's output.
        pull, scatter: float64 `[S, T]` or `[T]`, as above; by default 0.
        shares: float64 `[S]`, how much each model counts; by default all the same.

    Attributes:
        rows: float64 `[T + 1, T]`, m_t of each step and of the end.
        squares: float64 `[S, T + 1]`, E[(m_t . f)^2].
        scale: the mean square of an output, by the shares.
    """

    def __init__(
        self, matrices: ArrayLike, sizes: ArrayLike, pull: ArrayLike = 0.0,
        scatter: ArrayLike = 0.0, shares: ArrayLike = 1.0,
    ) -> None:  # fmt: skip
        self.sizes = np.asarray(sizes, np.float64)
        steps = len(self.sizes)
        self.matrices = np.asarray(matrices, np.float64).reshape(-1, steps, steps)
        count = len(self.matrices)
        self.pull, self.scatter = (np.broadcast_to(x, (count, steps)) for x in (pull, scatter))
        self.rows = np.tri(steps + 1, steps, -1) * self.sizes
        self.squares = np.einsum("ti,sij,tj->st", self.rows, self.matrices, self.rows)
        self.weigh(shares)

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.sizes)

    def weigh(self, shares: ArrayLike) -> None:
        """Let each model count by its share, float `[S]`."""
        shares = np.broadcast_to(np.asarray(shares, np.float64), len(self.matrices))
        self.shares = shares / shares.sum()
        self.scale = float(np.einsum("s,stt->", self.shares, self.matrices)) / len(self)

    @property
    def matrix(self) -> np.ndarray:
        """The second moments of all models by their shares, float64 `[T, T]`."""
        return np.tensordot(self.shares, self.matrices, 1)


@dataclass(frozen=True)
class Aim:
    """How a plan makes up for the errors of its own forecasts.

    Attributes:
        response: a factor of the measured pull and scatter; with 0 errors are supposed not to
            disturb the outputs.
        final: how much the error of the final latents counts in the choice of full steps beside
            those at the end of each gap, as a multiple of their number.
        jitter: added to the diagonal, as a share of its mean in the kernel.
        ordinary: whether the noise has to move as in the full run. Outputs hold it with coefficient
            one, whatever the kernel says.

    Raises:
        ValueError: an option is out of range.
    """

    response: float = 1.0
    final: float = 1.0
    jitter: float = 1e-6
    ordinary: bool = True

    def __post_init__(self) -> None:
        check_range("response", self.response, 0)
        check_range("final", self.final, 0)
        check_real("jitter", self.jitter, above=0)
        if not isinstance(self.ordinary, bool):
            raise ValueError(f"ordinary must be true or false, got {self.ordinary!r}")

    def targets(
        self, steps: Sequence[int], run: FullRun, reuse: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the latents are to have moved by at the end of each gap, and its error.

        Args:
            steps: the n full steps, ascending, from 0 on.
            run: the full run.
            reuse: whether each gap repeats the output of the full step before it instead.

        Returns:
            Float64 `[n, n]`, p_t at the end t of the gap behind each full step, as weights of the
            full steps' outputs; and float64 `[S, n]`, E[e_t^2] there.
        """
        cached = _Cached(self, len(steps), run)
        planned = np.zeros((len(steps), len(steps)))
        for i, (step, end) in enumerate(pairwise([*steps, len(run)])):
            cached.compute(step)
            if reuse or end == step + 1:  # where nothing is skipped, nothing can be made up for
                planned[i] = planned[i - 1] if i else 0
                planned[i, i] = run.sizes[step:end].sum()
            else:
                planned[i, : i + 1] = cached.estimate(end)
            cached.reach(end, planned[i, : i + 1])
        return planned, cached.errors

    def cost(self, steps: Sequence[int], run: FullRun, reuse: bool = False) -> np.ndarray:
        """Return what full steps cost by the errors of `targets`, of each model: float64 `[S]`."""
        return self._cost(np.sqrt(self.targets(steps, run, reuse)[1]))

    def _cost(self, errors: np.ndarray) -> np.ndarray:
        return errors.sum(-1) + self.final * errors.shape[-1] * errors[..., -1]

    def weights(self, full: np.ndarray, base: np.ndarray, run: FullRun) -> np.ndarray:
        """Return the weights of a plan, float64 `[T, T]`: all of a gap are moved alike.

        Args:
            full: bool `[T]`.
            base: float64 `[T, T]`, the weights of the forecasts that are corrected.
            run: the full run.
        """
        steps, weights, sizes = np.flatnonzero(full).tolist(), base.copy(), run.sizes
        planned, _ = self.targets(steps, run)
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
        self, starts: Iterable[Sequence[int]], run: FullRun, kept: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Return better full steps: they are moved while the expected error falls.

        One is moved at a time, or all before it or after it with it.

        Args:
            starts: full steps to begin with; the best that is found from any is returned.
            run: the full run.
            kept: steps that stay full.
        """
        found = [self._search(tuple(start), run, set(kept)) for start in starts]
        return min(found)[1]

    def _search(
        self, start: tuple[int, ...], run: FullRun, kept: set[int]
    ) -> tuple[float, tuple[int, ...]]:
        """Return the least cost that is found from a start, and its full steps."""

        def cost(steps: tuple[int, ...]) -> float:
            return float(self._cost(np.sqrt(run.shares @ self.targets(steps, run)[1])))

        best, least, before = start, cost(start), None
        while best != before:
            before = best
            for i, by in product(range(1, len(best)), range(-REACH, REACH + 1)):
                for part in (slice(i, i + 1), slice(i, None), slice(1, i + 1)):
                    places = np.array(best)
                    places[part] += by
                    moved = tuple(places.tolist())
                    rising = moved[-1] < len(run) and (np.diff(places) > 0).all()
                    if moved == best or not rising or not kept <= set(moved):
                        continue
                    found = cost(moved)
                    if found < least * (1 - 1e-9):
                        best, least = moved, found
        return least, best


class _Cached:
    """The second moments of a cached sampling, full step by full step.

    Args:
        aim: what is supposed of errors.
        count: how many full steps there will be.
        run: the full run.

    Attributes:
        errors: float64 `[S, count]`, E[e_t^2] at the ends of the gaps so far.
    """

    def __init__(self, aim: Aim, count: int, run: FullRun) -> None:
        self.aim, self.full = aim, run
        models = len(run.matrices)
        self.errors = np.zeros((models, count))
        # y of each full step: as weights of f, these times the matrix, and as weights of the
        # noises, which have these variances.
        self.outputs = np.zeros((models, count, len(run)))
        self.across = np.zeros_like(self.outputs)
        self.own = np.tile(np.eye(count), (models, 1, 1))
        self.noise = np.zeros((models, count))
        self.done, self.moved = 0, np.zeros(0)

    def compute(self, step: int) -> None:
        """Compute a step in full, where the last gap has led."""
        i, run = self.done, self.full
        self.outputs[:, i, step] = 1
        if i:
            pull = self.aim.response * run.pull[:, step, None]
            self.outputs[:, i] += pull * (self.moved @ self.outputs[:, :i] - run.rows[step])
            self.own[:, i, :i] = pull * (self.moved @ self.own[:, :i, :i])
            self.noise[:, i] = (self.aim.response * run.scatter[:, step]) ** 2
            self.noise[:, i] *= self.errors[:, i - 1]
        self.across[:, i] = (self.outputs[:, i, None] @ run.matrices)[:, 0]
        self.done += 1
        rows, own = self.outputs[:, : self.done], self.own[:, : self.done]
        self.among = self.across[:, : self.done] @ rows.transpose(0, 2, 1)
        self.among += (own * self.noise[:, None]) @ own.transpose(0, 2, 1)

    def _toward(self, end: int) -> np.ndarray:
        """Return E[y m_end . f], float64 `[S, done]`."""
        return self.across[:, : self.done] @ self.full.rows[end]

    def estimate(self, end: int) -> np.ndarray:
        """Return where to move the latents by `end`, as weights of the full steps so far.

        That is what they were moved by, and the best linear estimate of what is missing.
        """
        moved, run = np.append(self.moved, 0.0), self.full
        among = np.tensordot(run.shares, self.among, 1)
        # Each output holds the noise with what it is summed up to of f: one, if `ordinary`.
        unit = run.shares @ self.outputs[:, : self.done].sum(2)
        floor = self.aim.jitter * run.scale * np.eye(self.done)
        toward = run.shares @ self._toward(end) - among @ moved
        free, even = np.linalg.solve(among + floor, np.stack([toward, unit], axis=1)).T
        if self.aim.ordinary:
            missing = run.rows[end].sum() - unit @ (moved + free)
            free = free + missing / (unit @ even) * even
        return moved + free

    def reach(self, end: int, moved: np.ndarray) -> None:
        """End a gap where the latents have been moved by `moved . y`, float64 `[done]`."""
        error = np.einsum("i,sij,j->s", moved, self.among, moved)
        error += self.full.squares[:, end] - 2 * self._toward(end) @ moved
        self.errors[:, self.done - 1], self.moved = np.maximum(error, 0), moved

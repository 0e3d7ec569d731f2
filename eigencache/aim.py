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

from collections.abc import Sequence
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
    """How full runs of one or several models move the latents, and how errors disturb them.

    All models count the same.

    Args:
        matrices: float64 `[S, T, T]` or `[T, T]`, the second moments of the outputs of S models.
        sizes: float64 `[T]`, by how much the final latents move per unit of each step's output.
        pull, scatter: float64 `[S, T]` or `[T]`, as above; by default 0.

    Attributes:
        rows: float64 `[T + 1, T]`, m_t of each step and of the end.
        toward: float64 `[S, T, T + 1]`, E[f_s m_t . f].
        squares: float64 `[S, T + 1]`, E[(m_t . f)^2].
        matrix: float64 `[T, T]`, the mean of the models' matrices.
        scale: the mean square of an output.
    """

    def __init__(
        self, matrices: ArrayLike, sizes: ArrayLike, pull: ArrayLike = 0.0,
        scatter: ArrayLike = 0.0,
    ) -> None:  # fmt: skip
        self.sizes = np.asarray(sizes, np.float64)
        steps = len(self.sizes)
        self.matrices = np.asarray(matrices, np.float64).reshape(-1, steps, steps)
        count = len(self.matrices)
        self.pull, self.scatter = (np.broadcast_to(x, (count, steps)) for x in (pull, scatter))
        self.rows = np.tri(steps + 1, steps, -1) * self.sizes
        self.toward = self.matrices @ self.rows.T
        self.squares = np.einsum("ti,sit->st", self.rows, self.toward)
        self.matrix = self.matrices.mean(0)
        self.scale = float(np.trace(self.matrix)) / steps

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.sizes)


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
        near: how far full steps may move from where the schedule has them, as a share of the mean
            distance between them; one step is always allowed. Methods begin with even steps, which
            are plain sampling's and suit every model; far from these, plans of few runs lost to
            plain sampling under guidance. A closed loop tries starts that are anywhere, too.
        trust: the share of the estimate that a gap takes, from 0 to 1; for the rest it repeats the
            output of the full step before it.

    Raises:
        ValueError: an option is out of range.
    """

    response: float = 1.0
    final: float = 1.0
    jitter: float = 1e-6
    ordinary: bool = True
    near: float = 0.6
    trust: float = 1.0

    def __post_init__(self) -> None:
        check_range("response", self.response, 0)
        check_range("final", self.final, 0)
        check_real("jitter", self.jitter, above=0)
        check_range("near", self.near, 0)
        check_range("trust", self.trust, 0, 1)
        if not isinstance(self.ordinary, bool):
            raise ValueError(f"ordinary must be true or false, got {self.ordinary!r}")

    def targets(self, steps: ArrayLike, run: FullRun) -> tuple[np.ndarray, np.ndarray]:
        """Return what the latents are to have moved by at the end of each gap, and its error.

        Args:
            steps: int `[..., n]`, the n full steps, ascending, from 0 on.
            run: the full run.

        Returns:
            Float64 `[..., n, n]`, p_t at the end t of the gap behind each full step, as weights of
            the full steps' outputs; and float64 `[..., S, n]`, E[e_t^2] there.
        """
        steps = np.asarray(steps)
        each = steps.reshape(-1, steps.shape[-1])
        cached = _Cached(self, *each.shape, run)
        ends = np.append(each[:, 1:], np.full((len(each), 1), len(run)), 1)
        for step, end in zip(each.T, ends.T, strict=True):
            cached.compute(step)
            # Where nothing is skipped, nothing can be made up for.
            repeated = cached.repeat(end)
            mixed = self.trust * cached.estimate(end) + (1 - self.trust) * repeated
            cached.reach(end, np.where((end > step + 1)[:, None], mixed, repeated))
        return (
            cached.planned.reshape(*steps.shape, -1),
            cached.errors.reshape(*steps.shape[:-1], -1, steps.shape[-1]),
        )

    def cost(self, steps: ArrayLike, run: FullRun) -> np.ndarray:
        """Return what full steps, int `[..., n]`, cost by the errors of `targets`: float64 `[...]`.

        Args:
            steps: the n full steps, ascending, from 0 on.
            run: the full run.
        """
        errors = np.sqrt(self.targets(steps, run)[1].mean(-2))
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
        self, start: Sequence[int], run: FullRun, kept: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Return better full steps: they are moved while the expected error falls.

        One is moved at a time, or all before it or after it with it.

        Args:
            start: full steps to begin with; see `near`.
            run: the full run.
            kept: steps that stay full.
        """
        within, stay = max(1, round(self.near * len(run) / len(start))), set(kept)
        best, before = tuple(start), None
        least = float(self.cost(best, run))
        while best != before:
            before = best
            for i in range(1, len(best)):
                moves = list(product(range(-REACH, REACH + 1), _parts(i)))
                while moves:
                    found = {}
                    for move, (by, part) in enumerate(moves):
                        places = np.array(best)
                        places[part] += by
                        steps = tuple(places.tolist())
                        rising = steps[-1] < len(run) and (np.diff(places) > 0).all()
                        near = (np.abs(places - start) <= within).all()
                        if by and rising and near and stay <= {*steps}:
                            found[move] = steps
                    cost = self.cost(list(found.values()), run) if found else np.array([])
                    better = np.flatnonzero(cost < least * (1 - 1e-9))
                    if not len(better):
                        break
                    # The first that is better is made, and those behind it are tried from there.
                    move = list(found)[better[0]]
                    best, least, moves = found[move], float(cost[better[0]]), moves[move + 1 :]
        return best


def _parts(i: int) -> tuple[slice, slice, slice]:
    """Return what is moved at once: a full step, it and those after it, or it and those before."""
    return slice(i, i + 1), slice(i, None), slice(1, i + 1)


class _Cached:
    """The second moments of cached samplings, full step by full step.

    They are of C ways to place n full steps, and of S models. All that is asked of the outputs y_i
    of the full steps so far, and of the present error e, follows from E[y_i f_t] and E[y_i y_j].

    Args:
        aim: what is supposed of errors.
        ways, count: C and n.
        run: the full run.

    Attributes:
        planned: float64 `[C, n, n]`, the p_t of each gap so far.
        errors: float64 `[C, S, n]`, E[e_t^2] at their ends.
    """

    def __init__(self, aim: Aim, ways: int, count: int, run: FullRun) -> None:
        self.aim, self.full = aim, run
        shape = ways, len(run.matrices), count
        self.planned, self.errors = np.zeros((ways, count, count)), np.zeros(shape)
        self.across = np.zeros((*shape, len(run)))  # E[y_i f_t]
        self.toward = np.zeros((*shape, len(run) + 1))  # E[y_i m_t . f]
        self.among = np.zeros((*shape, count))  # E[y_i y_j]
        self.unit = np.zeros(shape)  # what y_i is summed up to of f
        self.all, self.done = np.arange(ways), 0

    def compute(self, step: np.ndarray) -> None:
        """Compute a step in full, int `[C]`, where the last gap has led."""
        i, run, each = self.done, self.full, self.all
        across, unit = run.matrices[:, step].swapaxes(0, 1), np.ones(self.unit.shape[:2])
        power = across[each, :, step]
        if i:
            moved = self.planned[:, None, None, i - 1, :i]
            pull, scatter = (self.aim.response * x[:, step].T for x in (run.pull, run.scatter))
            # e = p . y - m_step . f; its moments with each f, and with the outputs so far.
            with_f = (moved @ self.across[:, :, :i])[:, :, 0]
            with_f -= run.toward[:, :, step].transpose(2, 0, 1)
            with_y = (moved @ self.among[:, :, :i, :i])[:, :, 0] - self.toward[each, :, :i, step]
            power = power + 2 * pull * with_f[each, :, step]
            power += (pull**2 + scatter**2) * self.errors[:, :, i - 1]
            among = self.across[each, :, :i, step] + pull[:, :, None] * with_y
            self.among[:, :, i, :i] = self.among[:, :, :i, i] = among
            across = across + pull[:, :, None] * with_f
            whole = (moved[:, :, 0] * self.unit[:, :, :i]).sum(2) - run.rows[step].sum(1)[:, None]
            unit += pull * whole
        self.across[:, :, i], self.toward[:, :, i] = across, across @ run.rows.T
        self.among[:, :, i, i], self.unit[:, :, i] = power, unit
        self.step, self.done = step, i + 1

    def _before(self) -> np.ndarray:
        """Return by what the latents have been moved, float64 `[C, done]`."""
        i = self.done - 1
        return self.planned[:, i - 1, : i + 1] if i else np.zeros((len(self.all), 1))

    def repeat(self, end: np.ndarray) -> np.ndarray:
        """Return where the last output alone moves the latents by `end`, int `[C]`."""
        moved = self._before().copy()
        moved[:, -1] += (self.full.rows[end] - self.full.rows[self.step]).sum(1)
        return moved

    def estimate(self, end: np.ndarray) -> np.ndarray:
        """Return where to move the latents by `end`, as weights of the full steps so far.

        That is what they were moved by, and the best linear estimate of what is missing.
        """
        run, moved, done = self.full, self._before(), slice(self.done)
        parts = self.among[:, :, done, done], self.unit[:, :, done], self._toward(end)
        among, unit, toward = (part.mean(1) for part in parts)
        toward -= (among @ moved[:, :, None])[:, :, 0]
        floor = self.aim.jitter * run.scale * np.eye(self.done)
        # Each output holds the noise with what it is summed up to of f: one, if `ordinary`.
        solved = np.linalg.solve(among + floor, np.stack([toward, unit], -1))
        free, even = solved[:, :, 0], solved[:, :, 1]
        if self.aim.ordinary:
            missing = run.rows[end].sum(1) - (unit * (moved + free)).sum(1)
            free = free + (missing / (unit * even).sum(1))[:, None] * even
        return moved + free

    def reach(self, end: np.ndarray, moved: np.ndarray) -> None:
        """End a gap at `end`, int `[C]`, where the latents have been moved by `[C, done]`."""
        done = slice(self.done)
        by = moved[:, None, :, None]
        error = (by.swapaxes(2, 3) @ self.among[:, :, done, done] @ by)[:, :, 0, 0]
        error += self.full.squares[:, end].T - 2 * (self._toward(end) * moved[:, None]).sum(2)
        self.errors[:, :, self.done - 1] = np.maximum(error, 0)
        self.planned[:, self.done - 1, done] = moved

    def _toward(self, end: np.ndarray) -> np.ndarray:
        """Return E[y_i m_end . f], float64 `[C, S, done]`."""
        return self.toward[self.all, :, : self.done, end]

"""Closed-loop design: fit a plan to the trajectories that the cached sampler itself visits.

The kernel tells how a forecast errs on undisturbed trajectories. A cached sampler leaves them: it
evaluates the network at latents that earlier forecasts have moved, and what an error does to the
image depends on when it is made. Here the plan is fitted with the network in the loop. With the
output tap and a flow-matching Euler sampler, x_{s+1} = x_s + d_s f_s, a gap between two full steps
is one linear update of the latents,

    x_next = x + sum_a g_a f_a,

over the features f_a of the full steps so far. So a plan is its full steps and one vector g a gap:

0. `designs`: the optimal designs of the kernel for several predictors; the best is the start;
1. `fit`: from gap to gap, the g that by least squares lead back to the undisturbed latents at the
   next full step, from where the sampler really is;
2. `exchange`: full steps move by a step or two while the error of the final latents falls;
3. `polish`: all g together, by Gauss-Newton steps on the error of the final latents.

Errors are decibels, -10 log10 of the mean square of an image's final latents, averaged over
images: what the mean PSNR of images is, in latent space. More is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from eigencache._checks import check_whole
from eigencache.design import MAX_TABLE, fill, optimal_steps, step_sizes
from eigencache.plan import PREDICTED_ERROR, Plan, PlanError
from eigencache.predictors import Kriging, Newton, Predictor

# Added to the diagonal of least squares, as a share of its mean, against ties.
JITTER = 1e-9
# Of Gauss-Newton: how far a coefficient is moved to see what it does, as a share of its gap, and
# the damping that is tried, as a share of the diagonal.
NUDGE, DAMPINGS = 1e-3, (1e-6, 1e-4, 1e-2)
# The designs for these predictors are where the search for full steps starts.
CANDIDATES: tuple[Predictor, ...] = (
    Kriging(2, 1e-6, ordinary=True),
    Kriging(3, 1e-6),
    Newton(1),
    Newton(2),
)


@dataclass(frozen=True)
class Runs:
    """Full runs of some prompts, and the network that made them.

    Attributes:
        latents: float64 `[T + 1, N, ...]`, before each step and after the last.
        velocity: (latents `[N, ...]`, step) to the network's output there, float64 `[N, ...]`.
        timesteps: float64 `[T]`; the sampler's.
        rounding: the relative rounding of latents in the network's dtype (its eps).
    """

    latents: np.ndarray
    velocity: Callable[[np.ndarray, int], np.ndarray]
    timesteps: np.ndarray
    rounding: float = 0.0

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.timesteps)

    def decibels(self, final: np.ndarray) -> float:
        """Return the mean over images of -10 log10 of the mean square error of final latents."""
        errors = np.square(_rows(final - self.latents[-1])).mean(1)
        return float(-10 * np.log10(np.maximum(errors, 1e-30)).mean())


class Stand(NamedTuple):
    """Where a cached sampling stands before a full step: its latents and the features so far."""

    latents: np.ndarray
    features: tuple[np.ndarray, ...]


Updates = Mapping[int, np.ndarray]  # position of the full step before a gap: the gap's g


def ends_of(steps: Sequence[int], count: int) -> list[int]:
    """Return where the gap behind each full step ends: at the next one, the last at `count`."""
    return [*steps[1:], count]


def fixed(updates: Updates) -> Callable:
    """Return the update for `follow` that knows the g of every gap already."""
    return lambda k, _: updates[k]


def follow(
    runs: Runs, steps: Sequence[int], update: Callable, stand: Stand | None = None, start: int = 0
) -> list[Stand]:
    """Sample with `steps` in full and `update` over every gap; return where it stands when.

    Args:
        runs: whose noise to start from.
        steps: the full steps, ascending from 0.
        update: (position k in `steps`, stand behind that step) to the gap's g, float64, over the
            last `len(g)` features.
        stand: where to go on from, before the full step at position `start`.

    Returns:
        The stands before each full step from `start` on, and at the end.
    """
    sizes, ends = step_sizes(runs.timesteps), ends_of(steps, len(runs))
    stands = [stand or Stand(runs.latents[0], ())]
    for k in range(start, len(steps)):
        latents, features = stands[-1]
        features = (*features, runs.velocity(latents, steps[k]))
        latents = latents + sizes[steps[k]] * features[-1]
        if ends[k] > steps[k] + 1:
            g = update(k, Stand(latents, features))
            for weight, feature in zip(g, features[-len(g) :], strict=True):
                latents = latents + float(weight) * feature
        stands.append(Stand(latents, features))
    return stands


def decibels(runs: Runs, steps: Sequence[int], updates: Updates) -> float:
    """Return how close the cached sampling with these updates ends to the full runs."""
    return runs.decibels(follow(runs, steps, fixed(updates))[-1].latents)


class Fit:
    """An update for `follow` that fits every gap as it comes to it, and remembers how.

    The g of a gap minimise the distance to the undisturbed latents at the next full step. They sum
    to the distance in sigma that the gap covers: a velocity holds the noise with coefficient one,
    and so must its forecast.

    Attributes:
        updates: what was fitted.
    """

    def __init__(self, runs: Runs, steps: Sequence[int], anchors: int | None) -> None:
        self.runs, self.anchors = runs, anchors
        self.steps, self.ends = steps, ends_of(steps, len(runs))
        self.sizes, self.updates = step_sizes(runs.timesteps), dict[int, np.ndarray]()

    def __call__(self, k: int, stand: Stand) -> np.ndarray:
        used = stand.features[-self.anchors :] if self.anchors else stand.features
        covered = self.sizes[self.steps[k] + 1 : self.ends[k]].sum()
        *others, latest = [feature.ravel() for feature in used]
        g = np.array([covered])
        if others:
            basis = np.stack([other - latest for other in others])
            wanted = (self.runs.latents[self.ends[k]] - stand.latents).ravel() - covered * latest
            gram = basis @ basis.T
            gram += JITTER * np.trace(gram) / len(gram) * np.eye(len(gram))
            free = np.linalg.solve(gram, basis @ wanted)
            g = np.append(free, covered - free.sum())
        self.updates[k] = g
        return g


@dataclass(frozen=True)
class ClosedLoop:
    """How a plan is fitted with the network in the loop.

    Attributes:
        anchors: how many of the latest full steps an update draws on; None for all.
        sweeps: how often every full step is tried at other places; 0 keeps the schedule.
        reach: how far a full step is moved at once.
        rounds: Gauss-Newton steps at most.
        held_out: how many of the calibration prompts judge what was fitted on the others.
        batch: how many images the network takes at once.

    Raises:
        ValueError: an option is out of range.
    """

    anchors: int | None = 6
    sweeps: int = 1
    reach: int = 2
    rounds: int = 4
    held_out: int = 16
    batch: int = 16

    def __post_init__(self) -> None:
        if self.anchors is not None:
            check_whole("anchors", self.anchors, low=1)
        for name, low in {"sweeps": 0, "reach": 1, "rounds": 0, "held_out": 1, "batch": 1}.items():
            check_whole(name, getattr(self, name), low=low)

    def fit(self, runs: Runs, steps: Sequence[int]) -> Updates:
        """Return the updates of every gap, fitted from gap to gap.

        Args:
            runs: what is fitted.
            steps: the full steps.
        """
        fit = Fit(runs, steps, self.anchors)
        follow(runs, steps, fit)
        return fit.updates

    def exchange(self, runs: Runs, steps: Sequence[int]) -> tuple[int, ...]:
        """Return full steps whose fit ends closer to the full runs, by moving one at a time.

        Args:
            runs: what is fitted.
            steps: where to start; the first, 0, stays.
        """
        steps = tuple(steps)
        stands = follow(runs, steps, Fit(runs, steps, self.anchors))
        best = runs.decibels(stands[-1].latents)
        for _ in range(self.sweeps):
            before = steps
            for i in tqdm(range(1, len(steps)), desc="full steps", delay=5, leave=False):
                for candidate in self._moved(steps, i, len(runs)):
                    # Until the full step before the one that moves, all is as it was.
                    update = Fit(runs, candidate, self.anchors)
                    onward = follow(runs, candidate, update, stands[i - 1], i - 1)
                    found = runs.decibels(onward[-1].latents)
                    if found > best:
                        best, steps, stands = found, candidate, stands[: i - 1] + onward
            if steps == before:
                break
        return steps

    def polish(self, runs: Runs, held_out: Runs, steps: Sequence[int], updates: Updates) -> Updates:
        """Return updates that end closer to the full runs, the held-out ones too.

        The slopes are measured once, which is most of the work, and serve every round.

        Args:
            runs: what is fitted.
            held_out: what judges it; a round that it does not gain by is the last.
            steps: the full steps.
            updates: where to start.
        """
        if not self.rounds or not updates:
            return updates
        best, slopes = decibels(held_out, steps, updates), slopes_of(runs, steps, updates)
        for _ in range(self.rounds):
            candidate = gauss_newton(runs, steps, updates, slopes)
            found = decibels(held_out, steps, candidate)
            if found <= best:
                break
            best, updates = found, candidate
        return updates

    def _moved(self, steps: tuple[int, ...], i: int, count: int) -> list[tuple[int, ...]]:
        """Return `steps` with the i-th at each place in reach between its neighbours."""
        low, high = steps[i - 1], ends_of(steps, count)[i]
        places = [steps[i] + sign * far for far in range(1, self.reach + 1) for sign in (1, -1)]
        return [(*steps[:i], p, *steps[i + 1 :]) for p in places if low < p < high]


def slopes_of(runs: Runs, steps: Sequence[int], updates: Updates) -> np.ndarray:
    """Return how the final latents move with each coefficient of the updates, in their order.

    Float64 `[coefficients, N, D]`, by nudging one at a time and following the sampling from there.
    """
    stands = follow(runs, steps, fixed(updates))
    final, slopes = stands[-1].latents, []
    sizes, ends = step_sizes(runs.timesteps), ends_of(steps, len(runs))
    for k, g in tqdm(updates.items(), desc="weights", delay=5, leave=False):
        latents, features = stands[k + 1]
        gap = abs(sizes[steps[k] + 1 : ends[k]].sum())
        for feature in features[-len(g) :]:
            # More than the network's dtype rounds away.
            seen = 4 * runs.rounding * np.linalg.norm(latents) / np.linalg.norm(feature)
            nudge = max(NUDGE * gap, seen)
            stand = Stand(latents + nudge * feature, features)
            moved = follow(runs, steps, fixed(updates), stand, k + 1)[-1].latents
            slopes.append(_rows(moved - final) / nudge)
    return np.stack(slopes)


def gauss_newton(
    runs: Runs, steps: Sequence[int], updates: Updates, slopes: np.ndarray | None = None
) -> Updates:
    """Return the updates after one damped Gauss-Newton step on the final latents' decibels.

    Every image's error is divided by its size, since decibels are. The best of `DAMPINGS` is
    taken; the updates come back as they were if none ends closer.

    Args:
        runs: what is fitted.
        steps: the full steps.
        updates: where to start.
        slopes: from `slopes_of`, here or a little away; measured if not given.
    """
    slopes = slopes_of(runs, steps, updates) if slopes is None else slopes
    final = follow(runs, steps, fixed(updates))[-1].latents
    error = _rows(final - runs.latents[-1])
    size = np.sqrt(np.square(error).mean(1, keepdims=True)).clip(1e-15)
    slopes, error = _rows(slopes / size), (error / size).ravel()
    gram, toward = slopes @ slopes.T, slopes @ error
    best, found = updates, runs.decibels(final)
    for damping in DAMPINGS:
        change = -np.linalg.solve(gram + damping * np.diag(np.diag(gram)), toward)
        ends = np.cumsum([len(g) for g in updates.values()])[:-1]
        parts = dict(zip(updates, np.split(change, ends), strict=True))
        candidate = {k: g + parts[k] for k, g in updates.items()}
        closer = decibels(runs, steps, candidate)
        if closer > found:
            best, found = candidate, closer
    return best


def _rows(latents: np.ndarray) -> np.ndarray:
    return latents.reshape(len(latents), -1)


def updates_of(plan: Plan) -> Updates:
    """Return the g of every gap of a plan, over all full steps so far."""
    sizes, steps, updates = step_sizes(plan.timesteps), plan.full_steps, {}
    for k, (step, end) in enumerate(zip(steps, ends_of(steps, len(plan)), strict=True)):
        if end > step + 1:
            rows = slice(step + 1, end)
            updates[k] = sizes[rows] @ plan.weights[rows][:, list(steps[: k + 1])]
    return updates


def with_updates(
    weights: np.ndarray, timesteps: ArrayLike, steps: Sequence[int], updates: Updates
) -> np.ndarray:
    """Return weights, float64 `[T, T]`, whose gaps have the given updates.

    Every row of a gap is corrected alike, so that rows keep what tells them from each other.
    """
    weights, sizes, ends = weights.copy(), step_sizes(timesteps), ends_of(steps, len(weights))
    for k, g in updates.items():
        rows = slice(steps[k] + 1, ends[k])
        wanted = np.zeros(len(weights))
        wanted[list(steps[k + 1 - len(g) : k + 1])] = g
        weights[rows] += (wanted - sizes[rows] @ weights[rows]) / sizes[rows].sum()
    return weights


def carry(runs: Runs, steps: Sequence[int], updates: Updates, probes: int = 8) -> np.ndarray:
    """Return by how much an error in the latents before each step has grown at the end.

    At some of the full steps the latents are pushed a little along the last change of the
    velocity, as a forecast's error would, and the cached sampling is followed to its end.

    Returns:
        float64 `[T + 1]`, by linear interpolation between the steps probed; 1 at the end.
    """
    stands = follow(runs, steps, fixed(updates))
    growth = {len(runs): 1.0}
    for k in sorted({round(x) for x in np.linspace(2, len(steps) - 1, probes)}):
        latents, features = stands[k]
        change = features[-1] - features[-2]
        share = max(NUDGE, 4 * runs.rounding)
        push = share * np.linalg.norm(latents) / np.linalg.norm(change) * change
        stand = Stand(latents + push, features)
        moved = follow(runs, steps, fixed(updates), stand, k)[-1].latents
        growth[steps[k]] = float(np.linalg.norm(moved - stands[-1].latents) / np.linalg.norm(push))
    known = sorted(growth)
    return np.interp(np.arange(len(runs) + 1), known, [growth[step] for step in known])


def designs(runs: Runs, plan: Plan, matrix: np.ndarray) -> set[tuple[int, ...]]:
    """Return the optimal designs for several predictors, with errors carried to the end or not."""
    steps = plan.full_steps
    weights = [None, carry(runs, steps, updates_of(plan))] if len(steps) > 3 else [None]
    return {
        optimal_steps(predictor, runs.timesteps, matrix, [len(steps)], weight)[len(steps)]
        for predictor in CANDIDATES
        if predictor.window and len(runs) ** (predictor.window + 1) <= MAX_TABLE
        for weight in weights
    }


def refine(
    plan: Plan, predictor: Predictor, matrix: np.ndarray, runs: Runs, held_out: Runs,
    loop: ClosedLoop,
) -> Plan:  # fmt: skip
    """Return the plan fitted in closed loop, or as it was if held-out prompts gain nothing.

    Args:
        plan: what to better, at the output tap.
        predictor: what tells the steps of a gap from each other; the fit is of the gap as a whole.
        matrix: float64 `[T, T]`, the second-moment kernel of the output tap.
        runs: what is fitted.
        held_out: what judges it.
        loop: how.

    Raises:
        PlanError: the plan has another tap or other timesteps than the runs.
    """
    if plan.tap != "output" or plan.streams:
        of = f", with weights for {plan.streams}" if plan.streams else ""
        raise PlanError(
            f"the closed loop needs a plan at the output tap, this is at {plan.tap!r}{of}"
        )
    plan.check_timesteps(runs.timesteps)
    starts = {plan.full_steps} | designs(runs, plan, matrix)
    start = max(sorted(starts), key=lambda steps: decibels(runs, steps, loop.fit(runs, steps)))
    steps = loop.exchange(runs, start)
    updates = loop.polish(runs, held_out, steps, loop.fit(runs, steps))
    before = decibels(held_out, plan.full_steps, updates_of(plan))
    after = decibels(held_out, steps, updates)
    told = f"held-out latents: {before:.2f} dB in open loop, {after:.2f} dB in closed loop"
    source = {**plan.source, "closed loop": f"{loop}; {told}"}
    if after <= before:
        return replace(plan, source=source)
    source.pop(PREDICTED_ERROR, None)  # of the open loop
    full = np.isin(np.arange(len(plan)), steps)
    open_loop = fill(full, predictor, plan.timesteps, matrix)
    weights = with_updates(open_loop, plan.timesteps, steps, updates)
    return replace(plan, full=full, weights=weights, source=source)

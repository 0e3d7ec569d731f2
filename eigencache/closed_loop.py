"""Closed-loop design: fit a plan to the trajectories that the cached sampler itself visits.

The kernel tells how a forecast errs on undisturbed trajectories. A cached sampler leaves them: it
evaluates the network at latents that earlier forecasts have moved, and what an error does to the
image depends on when it is made. Here the plan is fitted with the pipeline in the loop, by
`eigencache.calibration.simulator`. Every step of a gap between two full steps is forecast by a
base predictor, plus the same correction `u_a` of each of the latest features `f_a`: a scheduler is
linear in its outputs, so the latents at the end of the gap are linear in u.

0. `begin`: the plan's own steps, the optimal designs of several predictors, and what the aim makes
   of each of these are tried; the best is the start;
1. `fit`: from gap to gap, the u that by least squares lead back to the latents of the full run at
   the next full step, from where the sampler really is;
2. `exchange`: full steps move by a step or two while the error of the final latents falls;
3. `polish`: all u together, by Gauss-Newton steps on the error of the final latents.

In form the result is a bespoke non-stationary solver (Shaul et al., arXiv 2403.01329) on the
sampler's own timesteps: what is new is the fit.

Errors are decibels, -10 log10 of the mean square of an image's final latents, averaged over
images: what the mean PSNR of images is, in latent space. More is better.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from eigencache._checks import check_range, check_whole
from eigencache.aim import Aim, FullRun
from eigencache.design import MAX_TABLE, fill, optimal_steps
from eigencache.plan import Plan, PlanError
from eigencache.predictors import Kriging, Newton, Predictor

if TYPE_CHECKING:  # planning needs NumPy alone
    import torch

    from eigencache.calibration.simulator import Features, Gap, Simulator

# Of Gauss-Newton: how far a correction is moved to see what it does, and the damping that is
# tried, as a share of the diagonal.
NUDGE, DAMPINGS = 1e-3, (1e-4, 1e-2)
# The designs for these predictors are among the starts of the search for full steps.
CANDIDATES: tuple[Predictor, ...] = (
    Kriging(2, 1e-6, ordinary=True),
    Kriging(3, 1e-6),
    Newton(1),
    Newton(2),
)


class Sampled(NamedTuple):
    """A cached sampling of a simulator's calls.

    Attributes:
        full: bool `[T]`.
        weights: float64 `[T, T]`, as of a plan.
        features: the outputs of the full steps.
        final: the final latents of each batch.
        decibels: how close they are to those of the full runs.
    """

    full: np.ndarray
    weights: np.ndarray
    features: "Features"
    final: "list[torch.Tensor]"
    decibels: float

    @property
    def steps(self) -> tuple[int, ...]:
        """The full steps."""
        return tuple(int(s) for s in np.flatnonzero(self.full))


def sampled(
    runs: "Simulator", full: np.ndarray, weights: np.ndarray, features: "Features" = ()
) -> Sampled:
    """Return the sampling by full steps and weights, from the features that are known."""
    final, features = runs.run(full, weights, features)
    return Sampled(full, weights, features, final, runs.decibels(final))


def solve(gap: "Gap", ridge: float) -> np.ndarray:
    """Return the corrections u, float64 `[A]`, that end a gap closest to the full runs.

    They sum to zero: an output holds the noise with coefficient one, and so does its forecast.

    Args:
        gap: to be fitted.
        ridge: added to the diagonal of the least squares, as a share of its mean.
    """
    count = len(gap.toward)
    if count == 1:
        return np.zeros(1)
    contrast = np.vstack([np.eye(count - 1), -np.ones(count - 1)])
    gram = contrast.T @ gap.gram @ contrast
    if not np.trace(gram) > 0:  # the scheduler does not look at the outputs of this gap
        return np.zeros(count)
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    return contrast @ np.linalg.solve(gram, contrast.T @ gap.toward)


@dataclass(frozen=True)
class Base:
    """What forecasts the steps of a gap before they are corrected.

    Attributes:
        predictor: what fills the gaps of a schedule.
        run: what is known of full runs at the output tap.
        aim: what corrects these forecasts in open loop already, if anything.
    """

    predictor: Predictor
    run: FullRun
    aim: Aim | None = None

    def weights(self, full: np.ndarray, runs: "Simulator") -> np.ndarray:
        """Return float64 `[T, T]`."""
        weights = fill(full, self.predictor, runs.timesteps, self.run.matrix)
        return self.aim.weights(full, weights, self.run) if self.aim else weights


@dataclass(frozen=True)
class ClosedLoop:
    """How a plan is fitted with the network in the loop.

    Attributes:
        anchors: how many of the latest full steps a correction draws on; None for all.
        sweeps: how often every full step is tried at other places; 0 keeps the schedule.
        reach: how far a full step is moved at once.
        rounds: Gauss-Newton steps at most.
        held_out: how many of the calibration prompts judge what was fitted on the others; None is
            half of them, and 16 at most.
        batch: how many images the network takes at once, where the pipeline can.
        ridge: how strongly the fit of a gap holds its corrections at zero, where the base forecasts
            alone, as a share of the diagonal of its least squares. A little makes a plan better at
            guidance scales that it was not fitted at, and no worse at others; much costs quality.

    Raises:
        ValueError: an option is out of range.
    """

    anchors: int | None = 6
    sweeps: int = 1
    reach: int = 2
    rounds: int = 4
    held_out: int | None = None
    batch: int = 16
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("anchors", "held_out"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), low=1)
        for name, low in {"sweeps": 0, "reach": 1, "rounds": 0, "batch": 1}.items():
            check_whole(name, getattr(self, name), low=low)
        check_range("ridge", self.ridge, 1e-9)  # none would leave ties

    def fitted(self, prompts: int) -> int:
        """Return how many of so many calibration prompts are not held out.

        Args:
            prompts: how many there are.

        Raises:
            ValueError: none would be left to fit on.
        """
        held_out = min(16, prompts // 2) if self.held_out is None else self.held_out
        if prompts < 2:
            raise ValueError(
                "the closed loop needs at least two calibration prompts, one to fit on and one to "
                f"judge the fit; there is {prompts}"
            )
        if not 1 <= held_out < prompts:
            raise ValueError(
                f"{prompts} calibration prompts leave none to fit on when {held_out} are held out: "
                "give more prompts, or lower held_out"
            )
        return prompts - held_out

    def fit(
        self, runs: "Simulator", base: Base, steps: Sequence[int], known: Sequence[Sampled] = (),
    ) -> Sampled:  # fmt: skip
        """Return the sampling with every gap fitted, one after the other.

        Args:
            runs: what is fitted.
            base: what is corrected.
            steps: the full steps.
            known: fitted samplings by the same base. The one that begins with the most of these
                full steps is gone on from: up to the last that they share, nothing is computed.
        """
        full = np.isin(np.arange(len(runs)), steps)
        weights = base.weights(full, runs)
        features: Features = ()
        start = 0
        if known:
            nearest = max(known, key=lambda other: _shared(other.steps, steps))
            start = _shared(nearest.steps, steps) - 1
            weights[: steps[start]] = nearest.weights[: steps[start]]
            features = nearest.features[: start + 1]
        for k in range(start, len(steps)):
            features, gap = runs.gap(full, weights, features, k, self.anchors)
            if gap:
                rows, used = _gap(steps, k, len(runs)), list(steps[k + 1 - len(gap.toward) : k + 1])
                weights[rows, used] += solve(gap, self.ridge)
        return sampled(runs, full, weights, features)

    def begin(self, runs: "Simulator", base: Base, steps: tuple[int, ...]) -> Sampled:
        """Return the best of the fitted samplings by full steps of `starts`.

        Args:
            runs: what is fitted.
            base: what is corrected.
            steps: full steps.
        """
        known: list[Sampled] = []
        for each in sorted(starts(runs, base, steps)):
            known.append(self.fit(runs, base, each, known))
        return max(known, key=lambda tried: tried.decibels)

    def exchange(self, runs: "Simulator", base: Base, start: Sampled) -> Sampled:
        """Return a fitted sampling that ends closer to the full runs, by moving full steps.

        Args:
            runs: what is fitted.
            base: what is corrected.
            start: the fitted sampling to begin with; its first full step, 0, stays.
        """
        best = start
        for _ in range(self.sweeps):
            before = best.steps
            for i in tqdm(range(1, len(before)), desc="full steps", delay=5, leave=False):
                for candidate in self._moved(best.steps, i, runs):
                    found = self.fit(runs, base, candidate, [best])
                    if found.decibels > best.decibels:
                        best = found
            if best.steps == before:
                break
        return best

    def polish(self, runs: "Simulator", held_out: "Simulator", start: Sampled) -> Sampled:
        """Return a sampling that ends closer to the full runs, the held-out ones too.

        The slopes are measured once, which is most of the work, and serve every round.

        Args:
            runs: what is fitted.
            held_out: what judges it. A round may lose before the next one gains, so all are made,
                and the best of them is returned.
            start: where to begin.
        """
        if not self.rounds or start.full.all():
            return start
        judged = sampled(held_out, start.full, start.weights).decibels
        best, before, slopes = start, start, self.slopes(runs, start)
        for _ in range(self.rounds):
            after = self.gauss_newton(runs, before, slopes)
            if after is before:  # no step is of use
                break
            found = sampled(held_out, after.full, after.weights).decibels
            if found > judged:
                judged, best = found, after
            before = after
        return best

    def corrections(self, steps: Sequence[int], count: int) -> list[tuple[int, slice, int]]:
        """Return each correction: the position of its gap, the gap's rows, and its anchor.

        Args:
            steps: the full steps.
            count: the number of all steps.
        """
        found = []
        for k in range(len(steps)):
            rows = _gap(steps, k, count)
            used = steps[max(0, k + 1 - (self.anchors or count)) : k + 1]
            found += [(k, rows, a) for a in used if rows.stop > rows.start]
        return found

    def slopes(self, runs: "Simulator", at: Sampled) -> np.ndarray:
        """Return how the final latents move with each correction, float32 `[corrections, N, D]`.

        By nudging one at a time and following the sampling from there.

        Args:
            runs: what is fitted.
            at: the sampling whose corrections are nudged.
        """
        found, final, position = [], runs.errors(at.final), {s: k for k, s in enumerate(at.steps)}
        corrections = self.corrections(at.steps, len(runs))
        for k, rows, anchor in tqdm(corrections, desc="weights", delay=5, leave=False):
            # More than the latents' dtype rounds away.
            reach = abs(runs.step_sizes[rows].sum()) * _size(at.features[position[anchor]])
            nudge = max(NUDGE, 4 * runs.eps * _size(at.final) / reach) if reach else NUDGE
            weights = at.weights.copy()
            weights[rows, anchor] += nudge
            moved, _ = runs.run(at.full, weights, at.features[: k + 1])
            found.append(((runs.errors(moved) - final) / nudge).astype(np.float32))
        return np.stack(found)

    def gauss_newton(
        self, runs: "Simulator", at: Sampled, slopes: np.ndarray | None = None
    ) -> Sampled:
        """Return the sampling after one damped Gauss-Newton step on the final latents' decibels.

        Every image's error is divided by its size, since decibels are. The best of `DAMPINGS` is
        taken; the sampling comes back as it was if none ends closer.

        Args:
            runs: what is fitted.
            at: where to start.
            slopes: from `slopes`, here or a little away; measured if not given.
        """
        slopes = self.slopes(runs, at) if slopes is None else slopes
        error = runs.errors(at.final)
        size = np.sqrt(np.square(error).mean(1, keepdims=True)).clip(1e-15)
        gram, toward = np.zeros((len(slopes),) * 2), np.zeros(len(slopes))
        for i in range(len(error)):  # one image after the other, for the sake of memory
            each = slopes[:, i].astype(np.float64) / size[i]
            gram += each @ each.T
            toward += each @ (error[i] / size[i])
        moving = np.diag(gram) > 0  # the others do nothing
        best, corrections = at, self.corrections(at.steps, len(runs))
        for damping in DAMPINGS:
            damped = gram + np.diag(np.where(moving, damping * np.diag(gram), 1))
            change = np.where(moving, -np.linalg.solve(damped, toward), 0)
            weights = at.weights.copy()
            for (_, rows, anchor), u in zip(corrections, change, strict=True):
                weights[rows, anchor] += u
            found = sampled(runs, at.full, weights, at.features[:1])
            if found.decibels > best.decibels:
                best = found
        return best

    def _moved(self, steps: tuple[int, ...], i: int, runs: "Simulator") -> list[tuple[int, ...]]:
        """Return `steps` with the i-th at each place in reach between its neighbours."""
        if steps[i] in runs.switches:
            return []
        low, high = steps[i - 1], (*steps[1:], len(runs))[i]
        places = [steps[i] + sign * far for far in range(1, self.reach + 1) for sign in (1, -1)]
        return [(*steps[:i], p, *steps[i + 1 :]) for p in places if low < p < high]


def _gap(steps: Sequence[int], k: int, count: int) -> slice:
    """Return the skipped steps behind the full step at position k."""
    return slice(steps[k] + 1, steps[k + 1] if k + 1 < len(steps) else count)


def _shared(steps: Sequence[int], others: Sequence[int]) -> int:
    """Return how many full steps two samplings begin with alike."""
    pairs = zip(steps, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _size(parts: "Sequence[torch.Tensor]") -> float:
    return float(sum(part.double().square().sum() for part in parts)) ** 0.5


def starts(runs: "Simulator", base: Base, steps: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return full steps to begin with, as many as `steps`, which are among them.

    They are the optimal designs of several predictors, and what the aim makes of all these where it
    may move full steps anywhere: that is risky for a plan in open loop, but here it is tried.
    """
    found = {steps}
    for predictor in CANDIDATES:
        if not predictor.window or len(runs) ** (predictor.window + 1) > MAX_TABLE:
            continue
        # A predictor by timesteps has no design where timesteps repeat.
        with contextlib.suppress(ValueError):
            design = optimal_steps(
                predictor, runs.timesteps, base.run.matrix, [len(steps)], runs.step_sizes,
                runs.switches,
            )  # fmt: skip
            found.add(design[len(steps)])
    if base.aim:
        free = replace(base.aim, near=len(runs))
        found |= {free.steps(start, base.run, runs.switches) for start in found}
    return found


def refine(
    plan: Plan, base: Base, runs: "Simulator", held_out: "Simulator", loop: ClosedLoop
) -> Plan:
    """Return the plan fitted in closed loop, or as it was if held-out prompts gain nothing.

    Args:
        plan: what to better, at the output tap.
        base: what forecasts the steps of a gap before they are corrected.
        runs: what is fitted.
        held_out: what judges it.
        loop: how.

    Raises:
        PlanError: the plan has another tap or other timesteps than the runs.
    """
    if plan.tap != "output" or plan.streams:
        of = f", with weights for {plan.streams}" if plan.streams else ""
        raise PlanError(
            f"the closed loop needs a plan at the output tap, this one is at {plan.tap!r}{of}"
        )
    plan.check_timesteps(runs.timesteps)
    start = loop.begin(runs, base, plan.full_steps)
    found = loop.polish(runs, held_out, loop.exchange(runs, base, start))
    before = sampled(held_out, plan.full, plan.weights).decibels
    after = sampled(held_out, found.full, found.weights).decibels
    told = (
        f"{runs.count} calls fitted, {held_out.count} held out; held-out latents: {before:.2f} dB "
        f"in open loop, {after:.2f} dB in closed loop"
    )
    source = {**plan.source, "closed loop": f"{loop}; {told}"}
    if after <= before:
        return replace(plan, source=source)
    return replace(
        plan, full=found.full, weights=found.weights, source=source,
        predicted_error=math.nan,  # that was the open loop's
    )  # fmt: skip

"""Optimal design: the full steps that make a predictor's expected sampling error smallest.

Let C be the second-moment matrix of the tapped output, and let the sampler move by
x_{s+1} = x_s + d_s f_s. If the steps strictly between two consecutive full steps c < d are
forecast with weights w_s from the last M full steps, the sampler's error over that gap is
e = sum_s d_s (sum_a w_sa f_a - f_s): linear in the features, so E|e|^2 = q^T C q with q the
collected coefficients. The design minimises the sum over gaps of sqrt(E|e|^2). The state of the
dynamic programme is the last M full steps, so that its optimum is exact and its budget too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from eigencache.kernel import Kernel, step_sizes
from eigencache.plan import Plan, PlanError
from eigencache.predictors import Predictor

# The tables have steps ** (window + 1) entries of 8 bytes; beyond this they would not fit.
MAX_TABLE = 40_000_000
# How long the last gap of `spread` is, as a share of the others.
LAST = 0.6


def evenly(count: int, steps: int) -> np.ndarray:
    """Return so many full steps, bool `[T]`, evenly apart from the first on."""
    full = np.zeros(steps, bool)
    full[np.arange(count) * steps // count] = True
    return full


def spread(count: int, steps: int) -> np.ndarray:
    """Return so many full steps, bool `[T]`, evenly apart but for a shorter last gap.

    No full step makes up for the errors of that gap.
    """
    full = np.zeros(steps, bool)
    full[(np.arange(count) * steps / (count - 1 + LAST) + 0.5).astype(int)] = True
    return full


def fill(
    full: np.ndarray, predictor: Predictor, timesteps: ArrayLike, matrix: np.ndarray | None
) -> np.ndarray:
    """Return the weights, float64 `[T, T]`, with which `predictor` fills a schedule's gaps.

    Raises:
        PlanError: the predictor has no finite weights for a step.
    """
    weights = np.zeros((len(full), len(full)))
    for step in np.flatnonzero(~full):
        past = np.flatnonzero(full[:step])
        past = past[-predictor.window :] if predictor.window else past
        with np.errstate(divide="ignore", invalid="ignore"):
            weights[step, past] = predictor.weights(past, step, timesteps, matrix)
        if not np.isfinite(weights[step]).all():
            raise PlanError(
                f"{predictor} has no finite weights for step {step} from steps {past.tolist()}: "
                "some of their timesteps are the same, as in a second-order sampler (Heun); use a "
                "method whose predictor goes by steps or by a kernel"
            )
    return weights


def residuals(plan: Plan, stream: str = "output") -> np.ndarray:
    """Return float64 `[T, T]`: each step's forecast minus the truth, as weights of the features.

    Rows of steps that compute the stream are zero. For one trajectory of features f `[T, D]`, the
    errors of the forecasts are `residuals @ f`.
    """
    weights = plan.weights_of(stream)
    forecast = (weights != 0).any(axis=1)
    return np.where(forecast[:, None], weights - np.eye(len(plan)), 0.0)


def forecast_errors(plan: Plan, matrix: np.ndarray, stream: str = "output") -> np.ndarray:
    """Return sqrt(E|forecast - f|^2 / E|f|^2) of each step, float64 `[T]`; zero at full steps.

    The expectations are over the runs of the kernel `matrix`, float64 `[T, T]`, of the stream's
    second moments, in open loop: the features are those of undisturbed runs.
    """
    squares = np.maximum(_energy(residuals(plan, stream), matrix), 0)
    return np.sqrt(squares / np.diag(matrix))


def latents_errors(plan: Plan, matrix: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Return the root of the mean square error of the latents after each step, float64 `[T]`.

    In open loop: the errors of forecasts add up and are not fed back through the network. `matrix`
    is the second-moment kernel of the output tap, float64 `[T, T]`; the mean is over its runs and
    over the elements of the latents.
    """
    sizes = step_sizes(plan.timesteps) if sizes is None else sizes
    drift = np.cumsum(sizes[:, None] * residuals(plan), axis=0)
    return np.sqrt(np.maximum(_energy(drift, matrix), 0))


def with_predicted_error(plan: Plan, kernel: Kernel) -> Plan:
    """Return the plan with its `predicted_error`: that of the final latents, by `latents_errors`.

    The plan is returned unchanged if the kernel cannot predict it: if either is not at the output
    tap with its one stream, or if the kernel holds cosines, which do not know the features' size.
    """
    of_output = plan.tap == kernel.tap == "output" and len(kernel.streams) == 1
    if not (of_output and kernel.normalisation == "second-moment"):
        return plan
    errors = latents_errors(plan, kernel.matrix(), kernel.sizes)
    return replace(plan, predicted_error=float(errors[-1]))


def optimal_steps(
    predictor: Predictor, timesteps: ArrayLike, matrix: np.ndarray, budgets: Iterable[int],
    sizes: np.ndarray | None = None, kept: Sequence[int] = (),
) -> dict[int, tuple[int, ...]]:  # fmt: skip
    """Return, for each budget, its optimal full steps, by one dynamic programme for all.

    Args:
        predictor: what fills the gaps.
        timesteps: float `[T]`.
        matrix: float64 `[T, T]`, the second-moment kernel of the output tap.
        budgets: numbers of full steps, each from 1 to T.
        sizes: float `[T]`, by how much the latents move per unit of each step's output; by default
            those of a flow-matching Euler sampler (`step_sizes`).
        kept: steps that must be full.

    Raises:
        ValueError: a budget is out of range; the table of `T ** (window + 1)` entries would be too
            large, as it always is for a window of None; or no schedule has finite weights.
    """
    count, window = np.size(timesteps), predictor.window
    budgets = sorted(set(budgets))
    if not budgets or budgets[0] < 1 or budgets[-1] > count:
        raise ValueError(f"budgets {budgets} must lie between 1 and the {count} steps")
    if window is None or count ** (window + 1) > MAX_TABLE:
        raise ValueError(
            f"window={window} is too large to design {count} steps exactly: choose less"
        )
    if budgets[0] < len(kept) + (0 not in kept):
        raise ValueError(
            f"{budgets[0]} full steps cannot include step 0 and {sorted(kept)}: state "
            f"{len({0, *kept})} or more"
        )
    errors = {m: gap_errors(predictor, timesteps, matrix, m, sizes) for m in range(1, window + 1)}
    for table in errors.values():  # no gap crosses a step that must be full
        for step in kept:
            table[..., :step, step + 1 :] = np.inf
    value = np.where(np.arange(count) == 0, 0.0, np.inf)  # one full step so far: step 0
    dropped: dict[int, np.ndarray] = {}
    designs: dict[int, tuple[int, ...]] = {}
    for used in range(1, budgets[-1] + 1):
        gap = errors[min(used, window)]
        if used in budgets:
            error = value + gap[..., count]
            if not np.isfinite(error.min()):
                raise ValueError(f"{predictor} has no finite weights at the sampler's timesteps")
            state = np.unravel_index(np.argmin(error), value.shape)
            designs[used] = _traced(state, dropped, used, window)
        total = value[..., None] + gap[..., :count]
        if used < window:
            value = total
        else:  # the oldest step leaves the window; remember which one it was
            dropped[used + 1] = total.argmin(0).astype(np.int16)
            value = np.take_along_axis(total, dropped[used + 1][None].astype(np.intp), 0)[0]
    return designs


def gap_errors(
    predictor: Predictor, timesteps: ArrayLike, matrix: np.ndarray, size: int,
    sizes: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the table of sqrt(E|e|^2) for every gap behind every window of `size` full steps.

    Float64 `[T] * size + [T + 1]`: the window's steps ascending, then the next full step, or T
    for a gap that runs to the end. Entries that are not ascending are infinite.
    """
    count, sizes = np.size(timesteps), step_sizes(timesteps) if sizes is None else sizes
    table = np.full((count,) * size + (count + 1,), np.inf)
    for last in range(size - 1, count):
        heads = list(combinations(range(last), size - 1))
        windows = np.array([(*head, last) for head in heads])
        skipped = np.arange(last + 1, count)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = predictor.weights(windows[:, None, :], skipped[None, :], timesteps, matrix)
            moved = np.cumsum(sizes[skipped][:, None] * weights, axis=1)
        # q[:, k] is the gap that skips k steps: what it moves by, minus the truth.
        q = np.zeros((len(windows), len(skipped) + 1, count))
        past = np.broadcast_to(windows[:, None, :], moved.shape)
        np.put_along_axis(q[:, 1:], past, moved, axis=-1)
        q[:, 1:, last + 1 :] -= np.tri(len(skipped)) * sizes[skipped]
        with np.errstate(invalid="ignore"):
            errors = np.sqrt(np.maximum(_energy(q, matrix), 0))
        # Where timesteps repeat, some predictors have no finite weights.
        table[(*windows.T, slice(last + 1, None))] = np.where(np.isfinite(errors), errors, np.inf)
    return table


def _energy(q: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return q^T C q of every row of q `[..., T]`."""
    return ((q @ matrix) * q).sum(-1)


def _traced(
    state: Iterable[np.intp], dropped: Mapping[int, np.ndarray], used: int, window: int
) -> tuple[int, ...]:
    """Walk back from the last window to step 0 through the steps that left the window."""
    steps = [int(step) for step in state]
    for k in range(used, window, -1):
        steps.insert(0, int(dropped[k][tuple(steps[:window])]))
    return tuple(steps)

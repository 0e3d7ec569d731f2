"""Predictors: with which weights a skipped step is forecast from the full steps before it.

A predictor is a small immutable object with one method,

    weights(past, step, timesteps, matrix) -> float64 [..., m]

    past:   int [..., m], the last `m <= window` full steps, ascending;
    step:   int [...], the step to forecast, later than all of `past`;
    timesteps: float64 [T], the sampler's timesteps (of flow matching: 1000 sigma);
    matrix: float64 [T, T], the kernel of the stream; None for a predictor with `kernel = False`.

Leading dimensions broadcast, so that a planner can ask for every window at once. The forecast of
the feature is `sum_i weights[i] * f[past[i]]`. When fewer than `window` full steps exist yet, a
predictor does the best that it can with those.
"""

from dataclasses import dataclass
from math import factorial
from typing import ClassVar, Protocol

import numpy as np
from numpy.polynomial import hermite


class Predictor(Protocol):
    """What every predictor offers; see the module's text for `weights`."""

    kernel: ClassVar[bool]

    @property
    def window(self) -> int: ...

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray: ...


@dataclass(frozen=True)
class Reuse:
    """Repeat the latest full step's feature (FORA, arXiv 2407.01425)."""

    kernel: ClassVar[bool] = False
    window: ClassVar[int] = 1

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray:
        weights = np.zeros(np.broadcast_shapes(np.shape(past), (*np.shape(step), 1)))
        weights[..., -1] = 1
        return weights


@dataclass(frozen=True)
class Taylor:
    """Taylor expansion in the step index with repeated differences (TaylorSeer, arXiv 2503.06923).

    With a the latest full step and x = step - a, the forecast is sum_k x^k / k! D_k, where
    D_0 = f_a and D_{k+1} = (D_k(a) - D_k(a')) / (a - a') with a' the full step before a. Exact
    for features linear in the step when `order >= 1`; higher orders of these repeated differences
    are not derivatives on an uneven grid and give no higher exactness.
    """

    order: int = 1
    kernel: ClassVar[bool] = False

    def __post_init__(self):
        _check_whole("order", self.order, low=0)

    @property
    def window(self) -> int:
        return self.order + 1

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray:
        ahead = np.asarray(step) - np.asarray(past)[..., -1]
        return _expansion(past, [ahead**k / factorial(k) for k in range(self.window)])


@dataclass(frozen=True)
class HiCache:
    """Hermite expansion with scaled differences (HiCache, arXiv 2508.16984).

    f_a + sum_{k >= 1} scale^k H_k(scale x) / k! D_k, with the differences D_k of `Taylor`, the
    physicists' Hermite polynomials H_k and x = step - a, towards the future.
    """

    order: int = 2
    scale: float = 0.5
    kernel: ClassVar[bool] = False

    def __post_init__(self):
        _check_whole("order", self.order, low=0)
        _check_real("scale", self.scale, above=0)

    @property
    def window(self) -> int:
        return self.order + 1

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray:
        ahead = np.asarray(step) - np.asarray(past)[..., -1]
        terms = [np.ones(ahead.shape)]
        for k in range(1, self.window):
            hermite_k = hermite.hermval(self.scale * ahead, [0] * k + [1])
            terms.append(self.scale**k * hermite_k / factorial(k))
        return _expansion(past, terms)


@dataclass(frozen=True)
class Newton:
    """The polynomial in sigma through the last `order + 1` full steps, extrapolated.

    Exact for features that are polynomials of degree `order` in the sampler's noise level.
    """

    order: int = 2
    kernel: ClassVar[bool] = False

    def __post_init__(self):
        _check_whole("order", self.order, low=0)

    @property
    def window(self) -> int:
        return self.order + 1

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray:
        timesteps = np.asarray(timesteps, np.float64)
        nodes, target = timesteps[past], timesteps[step][..., None]
        weights = np.ones(np.broadcast_shapes(nodes.shape, target.shape))
        for i in range(nodes.shape[-1]):  # Lagrange's basis: weights of the polynomial's values
            for j in range(nodes.shape[-1]):
                if j != i:
                    node, other = nodes[..., i], nodes[..., j]
                    weights[..., i] *= (target[..., 0] - other) / (node - other)
        return weights


@dataclass(frozen=True)
class Kriging:
    """Best linear forecast under the kernel (EigenCache).

    w = (C_AA + jitter * s I)^-1 C_A,step over the last `window` full steps A, with s the mean
    diagonal of C_AA, so that the jitter is relative to the features' size (for a cosine kernel
    s = 1, which is the published form). `ordinary=True` makes the weights sum to one.
    """

    window: int = 3
    jitter: float = 1e-3
    ordinary: bool = False
    kernel: ClassVar[bool] = True

    def __post_init__(self):
        _check_whole("window", self.window, low=1)
        _check_real("jitter", self.jitter, above=0)

    def weights(self, past, step, timesteps, matrix=None) -> np.ndarray:
        past, step = np.asarray(past), np.asarray(step)
        past = np.broadcast_to(past, np.broadcast_shapes(past.shape, (*step.shape, 1)))
        among = matrix[past[..., :, None], past[..., None, :]]
        scale = np.trace(among, axis1=-2, axis2=-1) / past.shape[-1]
        among = among + self.jitter * scale[..., None, None] * np.eye(past.shape[-1])
        toward = matrix[past, step[..., None]]
        if not self.ordinary:
            return np.linalg.solve(among, toward[..., None])[..., 0]
        ones = np.ones_like(toward)
        solved = np.linalg.solve(among, np.stack([toward, ones], -1))
        free, unit = solved[..., 0], solved[..., 1]
        surplus = (1 - free.sum(-1)) / unit.sum(-1)
        return free + surplus[..., None] * unit


def _expansion(past, terms) -> np.ndarray:
    """Return the weights of sum_k terms[k] * D_k, with D_k the repeated differences at past[-1].

    `D[k][i]` are the weights of the k-th difference taken at the i-th full step of `past`; it
    exists for i >= k, since each difference needs one more earlier step.
    """
    past = np.asarray(past)
    count = past.shape[-1]
    differences = [np.eye(count)[i] for i in range(count)]
    weights = terms[0][..., None] * differences[-1]
    for k in range(1, min(count, len(terms))):
        differences = [
            (differences[j + 1] - differences[j]) / (past[..., [k + j]] - past[..., [k + j - 1]])
            for j in range(len(differences) - 1)
        ]
        weights = weights + terms[k][..., None] * differences[-1]
    return weights


def _check_whole(name: str, value, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def _check_real(name: str, value, above: float) -> None:
    if isinstance(value, bool) or not np.isreal(value) or not np.isfinite(value) or value <= above:
        raise ValueError(f"{name} must be a finite number above {above}, got {value!r}")

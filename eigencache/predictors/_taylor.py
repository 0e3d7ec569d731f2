"""Taylor expansions in the step index."""

from dataclasses import dataclass
from math import factorial

import numpy as np

from eigencache._checks import check_real
from eigencache.predictors._expansion import Expansion


@dataclass(frozen=True)
class Taylor(Expansion):
    """Taylor expansion in the step index with repeated differences (TaylorSeer, arXiv 2503.06923).

    With a the latest full step and x = step - a, the forecast is sum_k x^k / k! D_k, where
    D_0 = f_a and D_{k+1} = (D_k(a) - D_k(a')) / (a - a') with a' the full step before a. Exact
    for features linear in the step when `order >= 1`; higher orders of these repeated differences
    are not derivatives on an uneven grid and give no higher exactness.

    Attributes:
        order: of the expansion, at least 0.

    Raises:
        ValueError: the order is out of range.
    """

    order: int = 1

    def _terms(self, ahead: np.ndarray) -> list[np.ndarray]:
        return [ahead**k / factorial(k) for k in range(self.window)]


@dataclass(frozen=True)
class TaylorScaled(Taylor):
    """Taylor expansion whose k-th term is damped by scale^(2k).

    sum_k scale^(2k) x^k / k! D_k, with x and D_k of `Taylor`; a scale of 1 is `Taylor`. It is an
    ablation in the paper of HiCache (arXiv 2508.16984).

    Attributes:
        order: of the expansion, at least 0.
        scale: of the damping, above 0.

    Raises:
        ValueError: an option is out of range.
    """

    order: int = 2
    scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("scale", self.scale, above=0)

    def _terms(self, ahead: np.ndarray) -> list[np.ndarray]:
        return super()._terms(self.scale**2 * ahead)

"""Hermite expansion in the step index."""

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.polynomial import hermite

from eigencache._checks import check_range, check_real
from eigencache.predictors._expansion import Expansion


@dataclass(frozen=True)
class HiCache(Expansion):
    """Hermite expansion with scaled differences (HiCache, arXiv 2508.16984).

    f_a + sum_{k >= 1} scale^k H_k(scale x) / k! D_k, with the differences D_k of `Taylor`, the
    physicists' Hermite polynomials H_k and x = step - a, positive towards later steps.

    Attributes:
        order: of the highest difference, at least 0.
        scale: of the polynomials, above 0 and at most 1; the paper's sigma, which contracts.

    Raises:
        ValueError: an option is out of range.
    """

    order: int = 2
    scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("scale", self.scale, above=0)
        check_range("scale", self.scale, 0, 1)

    def _terms(self, ahead: np.ndarray) -> list[np.ndarray]:
        terms = [np.ones(ahead.shape)]
        for k in range(1, self.window):
            hermite_k = hermite.hermval(self.scale * ahead, [0] * k + [1])
            terms.append(self.scale**k * hermite_k / factorial(k))
        return terms

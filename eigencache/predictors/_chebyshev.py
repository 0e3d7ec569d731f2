"""Chebyshev polynomials in the step index."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike

from eigencache._checks import check_real, check_whole
from eigencache.predictors._predictor import Matrix


@dataclass(frozen=True)
class Chebyshev:
    """Ridge regression on Chebyshev polynomials over every full step so far (Spectrum).

    With Phi the polynomials T_0 ... T_degree of the step index scaled to [-1, 1], the forecast is
    Phi_step (Phi_A^T Phi_A + ridge I)^-1 Phi_A^T f_A (arXiv 2603.01623). The ridge also shrinks the
    constant term, so that even a constant is not reproduced exactly. Spectrum may blend this with
    a Taylor expansion; that is not done here.

    Attributes:
        degree: of the polynomials, at least 0.
        ridge: added to the diagonal, above 0; it does not depend on the size of the features.

    Raises:
        ValueError: an option is out of range.
    """

    degree: int = 4
    ridge: float = 0.1
    kernel: ClassVar[bool] = False
    window: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_whole("degree", self.degree, low=0)
        check_real("ridge", self.ridge, above=0)

    def weights(
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
    ) -> np.ndarray:
        basis = chebyshev.chebvander(np.linspace(-1, 1, np.size(timesteps)), self.degree)
        known, target = basis[np.asarray(past)], basis[np.asarray(step)]
        gram = known.swapaxes(-1, -2) @ known + self.ridge * np.eye(self.degree + 1)
        coefficients = np.linalg.solve(gram, target[..., None])
        return (known @ coefficients)[..., 0]

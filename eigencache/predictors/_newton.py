"""Polynomials in the noise level."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from eigencache.predictors._order import OfOrder
from eigencache.predictors._predictor import Matrix


@dataclass(frozen=True)
class Newton(OfOrder):
    """The polynomial in sigma through the last `order + 1` full steps, extrapolated.

    Exact for features that are polynomials of degree `order` in the sampler's noise level. It
    equals Newton's divided differences, written in Lagrange's basis.

    Attributes:
        order: the degree, at least 0.

    Raises:
        ValueError: the order is out of range.
    """

    order: int = 2

    def weights(
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
    ) -> np.ndarray:
        timesteps = np.asarray(timesteps, np.float64)
        nodes, target = timesteps[np.asarray(past)], timesteps[np.asarray(step)][..., None]
        weights = np.ones(np.broadcast_shapes(nodes.shape, target.shape))
        for i in range(nodes.shape[-1]):  # Lagrange's basis gives the weights
            for j in range(nodes.shape[-1]):
                if j != i:
                    node, other = nodes[..., i], nodes[..., j]
                    weights[..., i] *= (target[..., 0] - other) / (node - other)
        return weights

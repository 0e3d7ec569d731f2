"""Polynomials in the noise level."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eigencache.checks import check_whole


@dataclass(frozen=True)
class Newton:
    """The polynomial in sigma through the last `order + 1` full steps, extrapolated.

    Exact for features that are polynomials of degree `order` in the sampler's noise level.
    """

    order: int = 2
    kernel: ClassVar[bool] = False

    def __post_init__(self):
        check_whole("order", self.order, low=0)

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

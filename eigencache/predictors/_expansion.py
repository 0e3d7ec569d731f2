"""Expansions at the latest full step, by repeated differences on the uneven grid of full steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from eigencache.predictors._order import OfOrder
from eigencache.predictors._predictor import Matrix


@dataclass(frozen=True)
class Expansion(OfOrder, ABC):
    """A forecast sum_k terms[k] * D_k, with D_k the repeated differences at the latest full step.

    Attributes:
        order: of the highest difference, at least 0.

    Raises:
        ValueError: the order is out of range.
    """

    @abstractmethod
    def _terms(self, ahead: np.ndarray) -> list[np.ndarray]:
        """Return the factor of each difference, from the 0th to that of `order`.

        Args:
            ahead: int `[...]`, how many steps the forecast is behind the latest full one.
        """

    def weights(
        self, past: ArrayLike, step: ArrayLike, timesteps: ArrayLike, matrix: Matrix = None
    ) -> np.ndarray:
        past = np.asarray(past)
        terms, count = self._terms(np.asarray(step) - past[..., -1]), past.shape[-1]
        # `differences[i]` are the weights of the k-th difference at the i-th full step that has
        # one: each difference needs one more earlier step.
        differences = [np.eye(count)[i] for i in range(count)]
        weights = terms[0][..., None] * differences[-1]
        for k in range(1, min(count, len(terms))):
            apart = [past[..., [j]] - past[..., [j - 1]] for j in range(k, count)]
            differences = [
                (after - before) / by
                for (before, after), by in zip(pairwise(differences), apart, strict=True)
            ]
            weights = weights + terms[k][..., None] * differences[-1]
        return weights

"""Repeated differences of features on the uneven grid of full steps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def expansion(past: ArrayLike, terms: Sequence[np.ndarray]) -> np.ndarray:
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

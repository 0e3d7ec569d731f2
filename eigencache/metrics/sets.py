"""Metrics of whole sets of images: how far the features of one set are from those of another.

What is known of an image is one row of features, or of a video one per frame. So what several jobs
computed of parts of a set is joined row by row. This module needs neither torch nor a network.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.linalg import svdvals

from eigencache.metrics import METRICS

# By "METRIC/RUN", the features of a run's images in their order, float64 `[images, size]`.
Features = Mapping[str, np.ndarray]
# What a file of them says that it is (`eigencache._files`).
FORMAT = "eigencache-features-1"


def frechet(reference: np.ndarray, images: np.ndarray) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to two sets `[images, size]`.

    The trace of the square root of the covariances' product is the sum of the singular values of
    one set's centred features times the other's transposed. This is exact for singular covariances
    too, and faster than the square root of a matrix of the features' size.

    Raises:
        ValueError: a set has one image only.
    """
    if min(len(reference), len(images)) < 2:
        raise ValueError("a set of one image has no covariance; take 2 or more")
    (mean, centred), (other, others) = _moments(reference), _moments(images)
    shift = np.sum((mean - other) ** 2)
    spread = np.sum(centred**2) + np.sum(others**2)
    return float(max(0.0, shift + spread - 2 * svdvals(centred @ others.T).sum()))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and a matrix `A` of no more rows than columns with A^T A the covariance."""
    mean = features.mean(axis=0)
    scaled = (features - mean) / np.sqrt(len(features) - 1)
    if len(scaled) > scaled.shape[1]:
        scaled = np.asarray(np.linalg.qr(scaled, mode="r"))
    return mean, scaled


DISTANCES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {"frechet": frechet}


def joined(parts: Sequence[Features]) -> dict[str, np.ndarray]:
    """Return the features of sets whose parts follow each other in this order."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}


def score_sets(
    features: Features, references: Features, runs: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Return `run, reference` and one column per metric: each run's distance to each reference.

    Args:
        features: of the runs.
        references: of the runs that these are compared with.
        runs, names: those of them that are meant.

    Raises:
        ValueError: there are no features of a run, or not as many as of the reference.
    """
    metrics = dict.fromkeys(name.partition("/")[0] for name in features)
    rows = []
    for run in runs:
        for reference in names:
            row: dict[str, str | float] = {"run": run, "reference": reference}
            for metric in metrics:
                ours = features.get(f"{metric}/{run}")
                theirs = references.get(f"{metric}/{reference}")
                if ours is None or theirs is None or len(ours) != len(theirs):
                    raise ValueError(
                        f"{metric}: the features of {run} and {reference} are not of the same "
                        "prompts; score them again"
                    )
                try:
                    row[metric] = DISTANCES[METRICS[metric].whole](theirs, ours)
                except ValueError as error:
                    raise ValueError(f"{metric}: {error}") from error
            rows.append(row)
    return pd.DataFrame(rows)

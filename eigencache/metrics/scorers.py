"""Scorers: from the name of a metric to what computes it.

The file of a metric, `_NAME.py`, has a function `scorer(*folders, device)`: the folders are those
of the metric's models, in their order, the device is torch's name of it. What it returns is of
one of two kinds:

    of an image   score(reference, image, prompt) -> float
    of a set      `features(image)`, a vector, and `distance(reference, images)` -> float, of two
                  arrays [images, size] of such vectors

Images are float64 `[1, 3, height, width]` from 0 to 1. A metric that is not paired takes no notice
of the reference.
"""

import importlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from eigencache.metrics import METRICS


class Score(Protocol):
    """A metric of an image."""

    def __call__(self, reference: torch.Tensor, image: torch.Tensor, prompt: str) -> float: ...


class SetScore(Protocol):
    """A metric of a set of images."""

    def features(self, image: torch.Tensor) -> np.ndarray: ...

    def distance(self, reference: np.ndarray, images: np.ndarray) -> float: ...


class Scorers:
    """What computes some metrics.

    Attributes:
        images: name to the metrics of an image, in the order in which they were asked for.
        sets: the same of the metrics of a set.
        about: name to the `package` that computes it and its `version`.

    Args:
        models: name of the metric to the folders of the models it needs, in the order of
            `METRICS[name].models`.
        device: where networks run; torch's name of it.

    Raises:
        ValueError, OSError: what the metric says of its model or its environment.
    """

    def __init__(self, models: Mapping[str, Sequence[Path]], device: str = "cpu") -> None:
        self.images: dict[str, Score] = {}
        self.sets: dict[str, SetScore] = {}
        self.about: dict[str, dict] = {}
        for name, folders in models.items():
            made = scorer(name, folders, device)
            package = METRICS[name].package
            (self.sets if METRICS[name].whole else self.images)[name] = made
            self.about[name] = {
                "package": package,
                "version": getattr(made, "version", None) or metadata.version(package),
            }


def scorer(name: str, folders: Sequence[Path], device: str = "cpu") -> Any:
    """Return what computes a metric: a `Score`, or a `SetScore` if it is of a whole set.

    Args:
        name: a key of METRICS.
        folders: of its models, in their order.
        device: where networks run; torch's name of it.
    """
    return importlib.import_module(f"eigencache.metrics._{name}").scorer(*folders, device=device)

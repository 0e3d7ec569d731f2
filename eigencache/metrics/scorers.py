"""Scorers: from the name of a metric to what computes it.

A metric's file, `_NAME.py`, has a function `scorer(*folders, device)`. The folders are those of the
metric's models, in their order; the device is a torch device by name. It returns one of two kinds:

    of an image   score(reference, image, prompt) -> float
    of a set      `features(image)`, a vector; `eigencache.metrics.sets` compares sets of them

Images are float64 `[1, 3, height, width]` from 0 to 1. A metric that is not paired ignores the
reference.
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


class Scorers:
    """The scorers of some metrics.

    Attributes:
        images: by name, the metrics of single images, in the order in which they were requested.
        sets: by name, the metrics of sets.
        about: name to the `package` that computes it and its `version`.

    Args:
        models: name of the metric to the folders of the models it needs, in the order of
            `METRICS[name].models`.
        device: where networks run, as torch names it.

    Raises:
        ValueError, OSError: a metric cannot use its model or its environment; the message says why.
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
        device: where networks run, as torch names it.
    """
    return importlib.import_module(f"eigencache.metrics._{name}").scorer(*folders, device=device)

"""Trajectories: the features of a network's streams at every sampler step of one full run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from eigencache._records import Record


class TrajectoryError(ValueError):
    """A trajectory is malformed or damaged."""


@dataclass(frozen=True, eq=False)
class Trajectory(Record):
    """The features of one full run of `T` sampler steps.

    Attributes:
        features: stream name to float32 `[T, ...]`. A stream of two tensors, in diffusers
            those of the image and the text, is split in two: NAME.image and NAME.text.
        timesteps: float64 `[T]`; the sampler's timesteps.
        sigmas: float64 `[T + 1]`; the noise levels before each step and after the last.
        tap: where the features were taken; one of `eigencache.plan.TAPS`.
        prompt: of the run.
        seed: of the noise, from `eigencache.calibration.sampler.image_seed`.
        model: fingerprint of the model (`eigencache.runtime._taps.fingerprint`).

    Raises:
        TrajectoryError: there is no stream, or one lacks an entry per step or is not finite.
    """

    features: Mapping[str, np.ndarray]
    timesteps: np.ndarray
    sigmas: np.ndarray
    tap: str
    prompt: str
    seed: int
    model: str

    FORMAT: ClassVar[str] = "eigencache-trajectory-1"
    ERROR: ClassVar[type[ValueError]] = TrajectoryError
    ARRAYS: ClassVar[Mapping] = {
        "features": None, "timesteps": np.float64, "sigmas": np.float64
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = len(self.timesteps)
        if not self.features:
            raise TrajectoryError("a trajectory needs at least one stream")
        if len(self.sigmas) != steps + 1:
            raise TrajectoryError(f"{len(self.sigmas)} sigmas do not fit {steps} steps")
        if not (np.isfinite(self.timesteps).all() and np.isfinite(self.sigmas).all()):
            raise TrajectoryError("`timesteps` and `sigmas` must be finite")
        for name, feature in self.features.items():
            if len(feature) != steps:
                raise TrajectoryError(f"stream {name!r}: {len(feature)} entries in {steps} steps")
            if not np.isfinite(feature).all():
                raise TrajectoryError(f"stream {name!r}: not finite; the run diverged")

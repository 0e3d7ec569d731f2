"""Trajectories: the features of a network's streams at every sampler step of one full run."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eigencache._files import read_arrays, write_arrays

FORMAT = "eigencache-trajectory-1"


class TrajectoryError(ValueError):
    """A trajectory is malformed or damaged."""


@dataclass(frozen=True, eq=False)
class Trajectory:
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

    def __post_init__(self) -> None:
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

    def save(self, path: str | os.PathLike) -> None:
        """Write the trajectory as safetensors: `timesteps`, `sigmas`, each stream, metadata.

        Args:
            path: of the file, which is whole or absent.

        Raises:
            OSError: it cannot be written.
        """
        metadata = {
            "tap": self.tap,
            "streams": json.dumps(list(self.features)),
            "prompt": self.prompt,
            "seed": str(self.seed),
            "model": self.model,
        }
        arrays = {f"features/{name}": feature for name, feature in self.features.items()}
        arrays |= {"timesteps": self.timesteps, "sigmas": self.sigmas}
        write_arrays(path, arrays, FORMAT, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trajectory":
        """Read a trajectory that `save` wrote.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: there is no such file.
            TrajectoryError: the file is truncated, is no trajectory, or holds an invalid one.
        """
        arrays, metadata = read_arrays(path, FORMAT, TrajectoryError)
        try:
            return cls(
                {n: arrays[f"features/{n}"] for n in json.loads(metadata["streams"])},
                arrays["timesteps"],
                arrays["sigmas"],
                metadata["tap"],
                metadata["prompt"],
                int(metadata["seed"]),
                metadata["model"],
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise TrajectoryError(f"{path}: not a valid trajectory: {error}") from error

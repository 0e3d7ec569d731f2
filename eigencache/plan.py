"""The plan: which steps are computed in full, and how every other step is forecast from them.

Almost every published caching method is a plan: it forecasts the feature of a skipped step as a
fixed weighted sum of the features of earlier full steps. Methods differ in the weights alone, and
the weights depend on nothing but which steps are full. Token-wise methods recompute some tokens
besides, by a rule that is part of the plan. See `eigencache.methods` for the table.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from eigencache._checks import check_source
from eigencache._files import read_arrays, write_arrays
from eigencache.tokens import Rule, described, rule_of

FORMAT = "eigencache-plan-1"
# Where features can be taken; `eigencache.runtime._taps` finds the modules.
TAPS = ("output", "hidden", "blocks", "delta", "modules")
# Runs without a plan: every step in full, and the same sampler with fewer steps.
FULL, FEWER_STEPS = "full", "fewer-steps"
BASELINES = (FULL, FEWER_STEPS)
# Under which a plan's source says the PSNR in dB that its images will have, and the error of its
# latents that the kernel predicts (`eigencache.design.predicted_error`).
PREDICTED, PREDICTED_ERROR = "predicted psnr", "predicted error"


class PlanError(ValueError):
    """A plan is malformed, damaged, or does not belong to this sampler or model."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which of `T` sampler steps are full, and the weights that forecast the others.

    Attributes:
        full: bool `[T]`; step 0 is always full.
        weights: float64 `[T, T]`, one matrix for every tapped stream, or `[S, T, T]`, one for each
            of `streams`. Row `s` of a skipped step holds its weights over the full steps before
            `s`; it is zero elsewhere, and the row of a full step is zero. A stream whose row of a
            skipped step is all zero is computed there; at least one stream must be forecast.
        timesteps: float64 `[T]`; the sampler's timesteps (`scheduler.timesteps`) it was made for.
        tap: where in the network features are taken; one of `TAPS`.
        streams: the `S` stream names of `weights`; empty when one matrix serves all.
        model: fingerprint of the model it was calibrated on (`runtime._taps.fingerprint`);
            None when the weights do not depend on a model.
        source: where the plan came from: method, schedule, predictor, kernel ... (text to text).
        refresh: which MLP tokens a skipped step recomputes (`eigencache.tokens`), at tap "modules";
            None recomputes none.

    Raises:
        PlanError: a shape, a value or the causal structure is wrong; the message says which.
    """

    full: np.ndarray
    weights: np.ndarray
    timesteps: np.ndarray
    tap: str
    streams: tuple[str, ...] = ()
    model: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    refresh: Rule | None = None

    def __post_init__(self) -> None:
        full = _frozen(self.full, bool)
        weights = _frozen(self.weights, np.float64)
        timesteps = _frozen(self.timesteps, np.float64)
        object.__setattr__(self, "full", full)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "timesteps", timesteps)
        object.__setattr__(self, "streams", tuple(self.streams))
        object.__setattr__(self, "source", MappingProxyType(dict(self.source)))
        if self.tap not in TAPS:
            raise PlanError(f"unknown tap {self.tap!r}; there are {TAPS}")
        if self.refresh and self.tap != "modules":
            raise PlanError(f"tokens are recomputed at tap 'modules' only, not at {self.tap!r}")
        check_source(self.source, PlanError)
        try:
            predicted_psnr(self), predicted_latent_error(self)
        except ValueError as error:
            raise PlanError(
                f"`source`: {PREDICTED} and {PREDICTED_ERROR} must be numbers"
            ) from error
        _check(full, weights, timesteps, self.streams)

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.full)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The indices of the full steps, ascending; the first is 0."""
        return tuple(int(s) for s in np.flatnonzero(self.full))

    def weights_of(self, stream: str) -> np.ndarray:
        """Return the float64 `[T, T]` weights of one stream.

        Args:
            stream: its name; any, if one matrix serves all.

        Raises:
            PlanError: the plan has one matrix per stream and none for `stream`.
        """
        if self.weights.ndim == 2:
            return self.weights
        if stream not in self.streams:
            raise PlanError(f"the plan has no weights for stream {stream!r}; it has {self.streams}")
        return self.weights[self.streams.index(stream)]

    def check_timesteps(self, timesteps: ArrayLike) -> None:
        """Refuse a sampler whose timesteps are not those the plan was made for.

        Args:
            timesteps: float `[T]`, the sampler's.

        Raises:
            PlanError: the number of steps or a timestep differs; the message names the first.
        """
        timesteps = np.asarray(timesteps, np.float64)
        if timesteps.shape != self.timesteps.shape:
            raise PlanError(
                f"the plan was made for {len(self)} steps, the sampler takes {len(timesteps)}: "
                "sample with the plan's number of steps, or make a plan for this one"
            )
        wrong = np.flatnonzero(~np.isclose(timesteps, self.timesteps, rtol=1e-4, atol=1e-4))
        if len(wrong):
            s = wrong[0]
            raise PlanError(
                f"the plan was made for timestep {self.timesteps[s]:g} at step {s}, the sampler is "
                f"at {timesteps[s]:g}: the scheduler, its shift or the resolution differs from "
                "the one that the plan was made for; Plan.retimed carries it over"
            )

    def retimed(self, timesteps: ArrayLike) -> "Plan":
        """Return the plan carried over to a sampler with other timesteps.

        The full steps keep their indices and the weights their values; where they sum to one, each
        gap then covers its new length. To rescale each gap's update instead was measured to be no
        better. What was predicted is forgotten, since the images are others;
        `benchmarks/carry_over.py` measures what is lost.

        Args:
            timesteps: float `[T]`, the other sampler's.

        Raises:
            PlanError: the number of steps differs, or a timestep is not finite.
        """
        source = {k: v for k, v in self.source.items() if k not in (PREDICTED, PREDICTED_ERROR)}
        return replace(
            self, timesteps=np.asarray(timesteps, np.float64), source=source | {"retimed": "yes"}
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan as safetensors: `full`, `weights`, `timesteps`, and its metadata.

        Args:
            path: of the file, which is whole or absent.

        Raises:
            OSError: it cannot be written.
        """
        metadata = {
            "tap": self.tap,
            "streams": json.dumps(self.streams),
            "model": json.dumps(self.model),
            "source": json.dumps(dict(self.source), sort_keys=True),
            "refresh": json.dumps(described(self.refresh)),
        }
        arrays = {"full": self.full, "weights": self.weights, "timesteps": self.timesteps}
        write_arrays(path, arrays, FORMAT, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """Read a plan that `save` wrote.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: there is no such file.
            PlanError: the file is truncated, is not a plan, or holds an invalid one.
        """
        arrays, metadata = read_arrays(path, FORMAT, PlanError)
        try:
            return cls(
                **arrays,
                tap=metadata["tap"],
                streams=json.loads(metadata["streams"]),
                model=json.loads(metadata["model"]),
                source=json.loads(metadata["source"]),
                refresh=rule_of(json.loads(metadata.get("refresh", "null"))),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"{path}: not a valid plan: {error}; make it again") from error


def predicted_psnr(plan: Plan) -> float:
    """Return the PSNR in dB that a plan says its images will have; nan if it says nothing."""
    return float(plan.source.get(PREDICTED, "nan"))


def predicted_latent_error(plan: Plan) -> float:
    """Return the error of latents that a plan says its kernel predicts; nan if it says nothing.

    It is the root mean square of an element, before it is decoded (`eigencache.design`).
    """
    return float(plan.source.get(PREDICTED_ERROR, "nan"))


def load_plan(path: str | os.PathLike) -> Plan:
    """Return the plan in a file that `Plan.save` or the workflow wrote; the same as `Plan.load`.

    Args:
        path: of the file, `.safetensors`.

    Raises:
        FileNotFoundError: there is no such file.
        PlanError: the file is truncated, is not a plan, or holds an invalid one.
    """
    return Plan.load(path)


def _frozen(values: ArrayLike, dtype: DTypeLike) -> np.ndarray:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array


def _check(
    full: np.ndarray, weights: np.ndarray, timesteps: np.ndarray, streams: tuple[str, ...]
) -> None:
    """Raise a PlanError that names the first thing wrong with a plan's arrays."""
    steps = len(full) if full.ndim == 1 else 0
    if steps == 0:
        raise PlanError(f"`full` must be a vector with one entry a step, got shape {full.shape}")
    expected = (len(streams), steps, steps) if streams else (steps, steps)
    if weights.shape != expected:
        raise PlanError(f"`weights` must have shape {expected}, got {weights.shape}")
    if timesteps.shape != (steps,):
        raise PlanError(f"`timesteps` must have shape {(steps,)}, got {timesteps.shape}")
    if len(set(streams)) != len(streams):
        raise PlanError(f"stream names must differ, got {streams}")
    if not full[0]:
        raise PlanError("step 0 must be full: there is nothing earlier to forecast it from")
    for name, array in (("weights", weights), ("timesteps", timesteps)):
        if not np.isfinite(array).all():
            raise PlanError(f"`{name}` must be finite")
    empty = ~full & (weights == 0).all(axis=-1)
    if np.atleast_2d(empty).all(axis=0).any():
        step = np.flatnonzero(np.atleast_2d(empty).all(axis=0))[0]
        raise PlanError(f"step {step} is skipped and has no weights to be forecast with")
    allowed = ~full[:, None] & full[None, :] & np.tri(steps, k=-1, dtype=bool)
    if (weights != 0)[..., ~allowed].any():
        s, a = np.argwhere(((weights != 0) & ~allowed).reshape(-1, steps, steps).any(0))[0]
        raise PlanError(
            f"weights[{s}, {a}] must be zero: only skipped steps have weights, and only over "
            "full steps before them"
        )

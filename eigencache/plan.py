"""The plan: which steps are computed in full, and how every other step is forecast from them.

Almost every published caching method is a plan: it forecasts the feature of a skipped step as a
fixed weighted sum of the features of earlier full steps. Methods differ only in the weights, which
depend only on which steps are full. Token-wise methods also recompute some tokens, by a rule that
is part of the plan. See `eigencache.methods` for the table.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_passes
from eigencache._records import Record
from eigencache.tokens import Rule, described, rule_of

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from eigencache.kernel import Kernel

# Where features can be taken; `eigencache.runtime._taps` finds the modules.
TAPS = ("output", "hidden", "blocks", "delta", "modules")
# Runs without a plan: every step in full, and the same sampler with fewer steps.
FULL, FEWER_STEPS = "full", "fewer-steps"
BASELINES = (FULL, FEWER_STEPS)


class PlanError(ValueError):
    """A plan is malformed, damaged, or does not belong to this sampler or model."""


class PlanWarning(UserWarning):
    """A plan is used for something that it was not made for, or this cannot be checked."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Record):
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
        source: where the plan came from: schedule, predictor, kernel ... (text to text).
        refresh: which MLP tokens a skipped step recomputes (`eigencache.tokens`), at tap "modules";
            None recomputes none.
        method: its name in `eigencache.METHODS`; None if it has none.
        predicted_psnr: the PSNR in dB of its images to those of full runs, predicted from
            calibration prompts; nan if it was not predicted.
        predicted_error: the root-mean-square error of the final latents, predicted from its kernel
            (`eigencache.design.latents_errors`); nan if it was not predicted.
        arguments: what the pipeline was called with in calibration: names to numbers, texts, flags.
        scheduler: class of the sampler's scheduler; None if it is not known.
        pipeline: class of the pipeline; None if it is not known.
        passes: the least and the greatest of how often the networks took each latent at the first
            step of a calibration run, 2 under guidance by a second pass; None if it is not known.

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
    method: str | None = None
    predicted_psnr: float = math.nan
    predicted_error: float = math.nan
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    pipeline: str | None = None
    passes: tuple[float, float] | None = None

    FORMAT: ClassVar[str] = "eigencache-plan-1"
    ERROR: ClassVar[type[ValueError]] = PlanError
    ARRAYS: ClassVar[Mapping] = {"full": bool, "weights": np.float64, "timesteps": np.float64}
    ENCODED: ClassVar[Mapping] = {"refresh": (described, rule_of)}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "streams", tuple(self.streams))
        object.__setattr__(self, "passes", check_passes(self.passes, PlanError))
        if self.tap not in TAPS:
            raise PlanError(f"unknown tap {self.tap!r}; there are {TAPS}")
        if self.refresh and self.tap != "modules":
            raise PlanError(f"tokens are recomputed at tap 'modules' only, not at {self.tap!r}")
        for name in ("predicted_psnr", "predicted_error"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise PlanError(f"`{name}` must be a number, got {value!r}")
            try:
                object.__setattr__(self, name, float(value))
            except OverflowError as error:
                raise PlanError(f"`{name}` is too large a number") from error
        _check(self.full, self.weights, self.timesteps, self.streams)

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.full)

    def __repr__(self) -> str:
        """Return what the plan is, in one line."""
        told = [f"{self.full.sum()} of {len(self)} steps full", f"tap={self.tap!r}"]
        if self.method:
            told.append(f"method={self.method!r}")
        if not math.isnan(self.predicted_psnr):
            told.append(f"predicted_psnr={self.predicted_psnr:.1f}")
        return f"{type(self).__name__}({', '.join(told)})"

    @property
    def predictions(self) -> str:
        """What is predicted of the plan's images and latents, in words; empty if nothing is."""
        told = []
        if not math.isnan(self.predicted_psnr):
            told.append(f"predicted PSNR {self.predicted_psnr:.1f} dB")
        if not math.isnan(self.predicted_error):
            told.append(f"predicted error of latents {self.predicted_error:.2g}")
        return "; ".join(told)

    @property
    def full_steps(self) -> tuple[int, ...]:
        """The indices of the full steps, ascending; the first is 0."""
        return tuple(int(s) for s in np.flatnonzero(self.full))

    def weights_of(self, stream: str) -> np.ndarray:
        """Return the float64 `[T, T]` weights of one stream.

        Args:
            stream: its name; any name will do if one matrix serves all.

        Raises:
            PlanError: the plan has one matrix per stream and none for `stream`.
        """
        if self.weights.ndim == 2:
            return self.weights
        if stream not in self.streams:
            raise PlanError(f"the plan has no weights for stream {stream!r}; it has {self.streams}")
        return self.weights[self.streams.index(stream)]

    def check_timesteps(self, timesteps: ArrayLike) -> None:
        """Refuse a sampler with other timesteps than the plan was made for.

        Args:
            timesteps: float `[T]`, the sampler's.

        Raises:
            PlanError: the number of steps or a timestep differs; the message names the first.
        """
        timesteps = np.asarray(timesteps, np.float64)
        if timesteps.shape != self.timesteps.shape:
            raise PlanError(
                f"the plan was made for {len(self)} steps, the sampler takes {len(timesteps)}: "
                f"design it again from its kernel, or sample with {len(self)} steps"
            )
        wrong = np.flatnonzero(~np.isclose(timesteps, self.timesteps, rtol=1e-4, atol=1e-4))
        if len(wrong):
            s = wrong[0]
            raise PlanError(
                f"the plan was made for timestep {self.timesteps[s]:g} at step {s}, the sampler is "
                f"at {timesteps[s]:g}: the scheduler, its shift or the resolution differs from "
                "the one that the plan was made for; design it again from its kernel, or carry it "
                "over with Plan.retimed"
            )

    def retimed(self, timesteps: ArrayLike) -> "Plan":
        """Return the plan carried over to a sampler with other timesteps.

        The full steps keep their indices and the weights their values; where they sum to one, each
        gap then covers its new length. Rescaling each gap's update instead was measured and is no
        better. Predictions are dropped, since they are of other images;
        `benchmarks/carry_over.py` measures what is lost.

        Args:
            timesteps: float `[T]`, the other sampler's.

        Raises:
            PlanError: the number of steps differs, or a timestep is not finite.
        """
        return replace(
            self, timesteps=np.asarray(timesteps, np.float64),
            source={**self.source, "retimed": "yes"},
            predicted_psnr=math.nan, predicted_error=math.nan,
        )  # fmt: skip

    def push_to_hub(
        self, repo: str, *, kernel: "Kernel | None" = None, model: str | None = None,
        scores: str | os.PathLike | None = None, private: bool | None = None,
    ) -> str:  # fmt: skip
        """Write the plan and its card to a repository of the Hugging Face hub.

        Args:
            repo: its id, "user/repo"; it is made if it is not there.
            kernel: that the plan was made from, to go with it.
            model: folder or hub id of the model that the plan is for, for the card.
            scores: CSV of `eigencache score`, of images by this plan against those of full runs,
                for the card.
            private: whether a new repository is; by default as the hub's settings say.

        Returns:
            The commit, which `eigencache.load_plan` takes as a revision.

        Raises:
            OSError: the hub cannot be reached or refuses, or there are no such scores.
            ValueError: `repo` is not an id, or the scores are not of one set of images.
        """
        from eigencache.sharing import push_to_hub

        return push_to_hub(self, repo, kernel=kernel, model=model, scores=scores, private=private)

    def export_scheduler(
        self, folder: str | os.PathLike, scheduler: "SchedulerMixin | None" = None, *,
        pipe: Any = None, **call: Any,
    ) -> Path:  # fmt: skip
        """Write the plan as a scheduler of diffusers that needs no EigenCache.

        The file `planned_scheduler.py` defines `PlannedScheduler`, a subclass of the scheduler that
        the plan was made with; its text says how to use it, what it cannot do, and whether it was
        checked. It shows the pipeline the full steps alone. A pipeline that decides something by
        the number of steps it sees does something else with it, and only a run can tell: with
        `pipe`, one run by the plan and one by the scheduler are compared.

        Args:
            folder: to write into; it need not exist.
            scheduler: of the pipeline; its class replaces the plan's, and its config is written
                beside the file, for `PlannedScheduler.from_pretrained(folder)`.
            pipe: the pipeline to compare both on, in place of its scheduler. It is left as it was.
            call: the arguments of its call, such as the prompt; `arguments` hold for others.

        Returns:
            The path of the file.

        Raises:
            OSError: the folder cannot be written to.
            PlanError: the plan is not at tap "output", or of a scheduler that is not diffusers'; or
                `pipe` does not run with the exported scheduler, or makes something else with it.
            ValueError: the pipeline takes no such argument.

        Warns:
            PlanWarning: nothing was compared, since no `pipe` was given.
        """
        from eigencache.export import export_scheduler

        return export_scheduler(self, folder, scheduler, pipe, call)


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

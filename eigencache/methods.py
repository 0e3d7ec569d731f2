"""The table of methods: each is a schedule, a predictor and a tap, with its citation.

A few have one more part: an aim, a gate, or a rule by which skipped steps recompute tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from eigencache._checks import check_range, check_whole
from eigencache.aim import Aim, FullRun
from eigencache.closed_loop import ClosedLoop
from eigencache.design import fill, spread, with_predicted_error
from eigencache.kernel import OUTPUT, Kernel, KernelUse, Kind
from eigencache.plan import TAPS, Plan, PlanError, PlanWarning
from eigencache.predictors import (
    Chebyshev,
    HiCache,
    Kriging,
    Newton,
    Predictor,
    Reuse,
    Taylor,
    TaylorScaled,
)
from eigencache.schedules import Even, Greedy, Interval, Optimal, Schedule, Variance
from eigencache.tokens import ClusCa, Rule, ToCa

# Parameters that are not options, since the budget sets them.
BUDGETS = {"full_steps", "every", "tau"}


@dataclass(frozen=True)
class Gate:
    """Forecast the back half of the blocks before a gate step and the front half from it on.

    Delta-DiT (arXiv 2406.01125): the front blocks make the outlines, which early steps decide, and
    the back blocks the details. The half that is not forecast is computed.

    Attributes:
        gate: the share of the steps before the gate, 0 to 1.

    Raises:
        ValueError: `gate` does not lie between 0 and 1.
    """

    gate: float = 0.5

    def __post_init__(self) -> None:
        check_range("gate", self.gate, 0, 1)

    def streams(self, weights: np.ndarray) -> tuple[tuple[str, str], np.ndarray]:
        """Return the streams of tap "delta" and their weights, with this gate between them.

        Args:
            weights: float64 `[T, T]`, for both streams, or `[2, T, T]`, for each.

        Returns:
            The names of the streams, and float64 `[2, T, T]`, with zeros where one is computed.
        """
        steps = weights.shape[-1]
        early = np.arange(steps) < self.gate * steps
        return ("front", "back"), weights * np.stack([~early, early])[..., None]


class Parts(NamedTuple):
    """The parts of a method; None where it has no such part."""

    schedule: Schedule
    predictor: Predictor
    aim: Aim | None
    gate: Gate | None
    refresh: Rule | None
    closed_loop: ClosedLoop | None
    use: KernelUse | None


@dataclass(frozen=True)
class Method:
    """A published method: a schedule and a predictor, both with defaults, at a tap.

    Attributes:
        schedule: makes the schedule from `full_steps` and options.
        predictor: makes the predictor from options.
        tap: where the method takes its features (`eigencache.plan.TAPS`).
        cite: where it was published.
        defaults: options that differ from those of its parts.
        aim: makes the aim from options (`eigencache.aim`), if the method has one; its tap is
            "output".
        gate: makes the gate from options, if the method has one; its tap is "delta".
        refresh: makes the token-wise rule from options, if the method has one; its tap is
            "modules".
        closed_loop: makes the fit with the network in the loop (`eigencache.closed_loop`) from
            options, if the method's plans are refined by it; its tap is "output".
    """

    schedule: type[Schedule]
    predictor: type[Predictor]
    tap: str
    cite: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    aim: type[Aim] | None = None
    gate: type[Gate] | None = None
    refresh: type[Rule] | None = None
    closed_loop: type[ClosedLoop] | None = None

    @property
    def needs_kernel(self) -> bool:
        """Whether plans of this method depend on a calibrated kernel."""
        return self.schedule.kernel or self.predictor.kernel

    @property
    def name(self) -> str | None:
        """The method's name in `METHODS`; None if it is not there."""
        return next((name for name, method in METHODS.items() if method is self), None)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that the method reads."""
        kinds = filter(None, self._kinds.values())
        return tuple(sorted({f.name for kind in kinds for f in fields(kind)} - BUDGETS))

    def parts(
        self, full_steps: int | None, every: int | None = None, **options: object
    ) -> Parts:  # fmt: skip
        """Return the parts of the method.

        Args:
            full_steps: the budget; None for an interval.
            every: the interval, of methods that have one.
            options: values for some of the names in `options`; the others keep their defaults.

        Raises:
            ValueError: an option is unknown or out of range, or the method has no interval.
        """
        if every is not None and self.schedule is not Interval:
            raise ValueError("this method has no interval: state how many steps are full")
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(f"unknown options {unknown}; allowed are {list(self.options)}")
        options = {**self.defaults, **options, "full_steps": full_steps, "every": every}

        def made(kind: type | None) -> Any:
            names = {f.name for f in fields(kind)} if kind else ()
            return kind and kind(**{name: v for name, v in options.items() if name in names})

        parts = Parts(**{name: made(kind) for name, kind in self._kinds.items()})
        if self.schedule is Optimal and parts.predictor.window is None:
            raise ValueError("an optimal design needs a finite window: its tables grow with it")
        return parts

    def kind(self, tap: str | None = None, **options: Any) -> Kind:
        """Return which kernel plans are made from; if none, that of the outputs, for its timesteps.

        Args:
            tap, options: as for `open_loop`.

        Raises:
            ValueError: an option is unknown or out of range.
        """
        use = self.parts(1, **options).use
        return use.kind(tap or self.tap) if use else OUTPUT

    def plan(
        self, full_steps: int | None, timesteps: ArrayLike, kernel: Kernel | None = None,
        tap: str | None = None, *, every: int | None = None, kept: Sequence[int] = (),
        **options: Any,
    ) -> Plan:  # fmt: skip
        """Return the plan of this method for a budget of full steps.

        Args:
            full_steps, timesteps, kernel, tap, every, kept, options: as for `open_loop`.

        Raises:
            ValueError: as `open_loop` says; or the method's plans are fitted with the network in
                the loop, for which `eigencache.calibrate` needs a pipeline.
            PlanError, KernelError: as `open_loop` says.
        """
        if self.closed_loop:
            raise ValueError(
                "plans of this method are fitted with the network in the loop: make them with "
                "eigencache.calibrate, or take EigenCache-design for a plan in open loop"
            )
        return self.open_loop(full_steps, timesteps, kernel, tap, every=every, kept=kept, **options)

    def open_loop(
        self, full_steps: int | None, timesteps: ArrayLike, kernel: Kernel | None = None,
        tap: str | None = None, *, every: int | None = None, kept: Sequence[int] = (),
        **options: Any,
    ) -> Plan:  # fmt: skip
        """Return the plan of this method for a budget of full steps, before any closed loop.

        Args:
            full_steps: the budget; None if `every` is stated.
            timesteps: float `[T]`, the sampler's.
            kernel: of the kind that the method needs, if `needs_kernel`. Otherwise the plan keeps
                only what it says of its calibration.
            tap: where features are taken; by default the method's own.
            every: or one full step in every so many, after the first few.
            kept: steps that must be full at the tap "output", such as the first step of a second
                expert; by default those that the kernel tells of.
            options: values for some of the names in `options`; the others keep their defaults.

        Raises:
            ValueError: an option is unknown or out of range, or the budget cannot be met.
            PlanError: a kernel is missing, or was made at another tap.
            KernelError: the kernel is not of the kind that the method needs.
        """
        parts = self.parts(full_steps, every, **options)
        if parts.use and kernel:
            kernel = parts.use.of(kernel)
        tap = tap or self.tap
        if tap != "output":
            kept = ()
        elif not kept and kernel and kernel.switches and kernel.tap == "output":
            kept = kernel.at(timesteps).switches
        plan = make_plan(
            parts.schedule, parts.predictor, timesteps, kernel, tap=tap, aim=parts.aim,
            gate=parts.gate, refresh=parts.refresh, kept=kept,
        )  # fmt: skip
        return replace(plan, method=self.name)

    def budgets(self, steps: int, kept: Sequence[int] = (), **options: Any) -> list[int]:
        """Return the numbers of full steps to choose from for a quality, ascending.

        Args:
            steps: of the sampler. A plan that skips none of them is no choice.
            kept: steps after the first that must be full.
            options: of the method.
        """
        schedule = self.parts(FEWEST, **options).schedule
        found = schedule.budgets(steps) if isinstance(schedule, Interval) else range(steps)
        return [count for count in found if max(FEWEST, 1 + len(kept)) <= count < steps]

    @property
    def _kinds(self) -> dict[str, type | None]:
        """The class of each part, by its name in `Parts`."""
        kinds = {name: getattr(self, name) for name in Parts._fields if name != "use"}
        return kinds | {"use": KernelUse if self.needs_kernel else None}


# The fewest full steps that are tried when a quality is asked for.
FEWEST = 2
PUBLISHED = {"window": 3, "jitter": 1e-3, "features": "token-mean", "normalisation": "cosine"}
DESIGNED = {"window": 2, "jitter": 1e-6, "ordinary": True}
METHODS: Mapping[str, Method] = {
    "FORA": Method(Interval, Reuse, "modules", "arXiv 2407.01425"),
    "TaylorSeer": Method(Interval, Taylor, "modules", "arXiv 2503.06923"),
    "Taylor-Scaled": Method(Interval, TaylorScaled, "modules", "arXiv 2508.16984, ablation"),
    "HiCache": Method(Interval, HiCache, "modules", "arXiv 2508.16984"),
    "Delta-DiT": Method(Interval, Reuse, "delta", "arXiv 2406.01125", gate=Gate),
    "ToCa": Method(Interval, Reuse, "modules", "arXiv 2410.05317", refresh=ToCa),
    "ClusCa": Method(Interval, Taylor, "modules", "arXiv 2509.10312", refresh=ClusCa),
    "Hi-ClusCa": Method(
        Interval, HiCache, "modules", "arXiv 2509.10312 over 2508.16984", refresh=ClusCa
    ),
    "Newton": Method(Interval, Newton, "output", "divided differences in sigma"),
    "Spectrum": Method(Interval, Chebyshev, "output", "arXiv 2603.01623"),
    # Weights by least squares over all full steps so far: kriging with next to no jitter.
    "L2P": Method(
        Interval, Kriging, "output", "arXiv 2604.26365", {"window": None, "jitter": 1e-8}
    ),
    "EigenCache-published": Method(Interval, Kriging, "modules", "EigenCache, fixed", PUBLISHED),
    "EigenCache-greedy": Method(Greedy, Kriging, "modules", "EigenCache, greedy", PUBLISHED),
    "EigenCache-variance": Method(Variance, Kriging, "modules", "EigenCache, variance", PUBLISHED),
    # A velocity holds the noise with coefficient one at every step, and so must a forecast: its
    # weights sum to one. Window and jitter were chosen on calibration prompts.
    "EigenCache-optimal": Method(
        Optimal, Kriging, "output", "EigenCache, optimal design", DESIGNED
    ),
    "EigenCache-design": Method(
        Even, Kriging, "output", "EigenCache, aimed design", DESIGNED, Aim
    ),
    "EigenCache": Method(
        Even, Kriging, "output", "EigenCache, closed loop", DESIGNED, Aim, closed_loop=ClosedLoop
    ),
}  # fmt: skip


def method_of(name: str) -> Method:
    """Return the method with a name.

    Raises:
        ValueError: there is none; the message lists all names.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def check_wish(
    method: Method, full_steps: int | None, psnr: float | None, tap: str | None,
    options: Mapping[str, Any], prompts: int | None = None,
) -> None:  # fmt: skip
    """Validate what is asked of a method before any work; raise a ValueError if it is wrong.

    Args:
        method: the method.
        full_steps: the budget, or None.
        psnr: the quality in dB, or None.
        tap: where features are to be taken, or None.
        options: of the method.
        prompts: how many there are to calibrate on; None if the plan is made from a kernel alone.
    """
    if (full_steps is None) == (psnr is None):
        raise ValueError("state either full_steps, a number of steps, or psnr, a quality in dB")
    if full_steps is not None:
        check_whole("full_steps", full_steps, low=1)
    if psnr is not None and not (math.isfinite(psnr) and psnr > 0):
        raise ValueError(f"psnr must be a finite number of dB above 0, got {psnr}")
    if tap is not None and tap not in TAPS:
        raise ValueError(f"tap: there is no {tap!r}; there are {', '.join(TAPS)}")
    if method.aim and tap not in (None, method.tap):
        raise ValueError(f"tap: this method works at {method.tap!r}, not at {tap!r}")
    loop = method.parts(full_steps or FEWEST, **options).closed_loop
    if prompts is not None and loop:
        loop.fitted(prompts)
    elif prompts is not None and psnr is not None and method.needs_kernel and prompts < 2:
        raise ValueError("psnr: state two prompts or more, to calibrate on and to judge by")


def holding(full: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Return as many full steps, bool `[T]`, with the kept ones among them: others move there.

    Raises:
        ValueError: there are too few.
    """
    full = full.copy()
    for step in kept:
        if not full[step]:
            others = [s for s in np.flatnonzero(full) if s and s not in kept]
            if not others:
                raise ValueError(
                    f"{full.sum()} full steps cannot include step 0 and {sorted(kept)}: state "
                    f"{len({0, *kept})} or more"
                )
            full[min(others, key=lambda other: abs(other - step))] = False
            full[step] = True
    return full


def make_plan(
    schedule: Schedule,
    predictor: Predictor,
    timesteps: ArrayLike,
    kernel: Kernel | None = None,
    *,
    tap: str | None = None,
    aim: Aim | None = None,
    gate: Gate | None = None,
    refresh: Rule | None = None,
    kept: Sequence[int] = (),
) -> Plan:
    """Return the plan of a schedule and a predictor.

    Args:
        schedule: which steps are full; see `eigencache.schedules`.
        predictor: how the others are forecast; see `eigencache.predictors`.
        timesteps: float `[T]`, the sampler's (`pipe.scheduler.timesteps` after a run).
        kernel: needed if `schedule.kernel` or `predictor.kernel` is True. Otherwise the plan keeps
            only what it says of its calibration.
        tap: where features are taken; by default the kernel's tap, or else "output".
        aim: how the plan makes up for its errors, at tap "output": it moves the full steps of the
            schedule and corrects the forecasts. Even steps begin with a shorter last gap, too; what
            ends with less expected error is taken. By default there is none.
        gate: which half of the blocks is forecast when, at tap "delta"; by default both always.
        refresh: which tokens skipped steps recompute, at tap "modules"; by default none.
        kept: steps that must be full, such as the first step of a second expert; by default those
            that a kernel which is needed tells of. To each that the schedule skips, its nearest
            full step moves, so that the budget is as it was.

    Raises:
        PlanError: a kernel is needed and missing, or was made at another tap; or there is a
            gate at a tap other than "delta", a rule at a tap other than "modules", or an aim
            without a kernel at tap "output".
        ValueError: the schedule cannot meet its budget.
    """
    timesteps = np.asarray(timesteps, np.float64)
    used = kernel if schedule.kernel or predictor.kernel else None
    if (schedule.kernel or predictor.kernel) and kernel is None:
        raise PlanError(f"{schedule} with {predictor} needs a kernel: calibrate one first")
    tap = tap or (used.tap if used else "output")
    if used:
        if used.tap != tap:
            raise PlanError(f"the kernel was calibrated at tap {used.tap!r}, not at {tap!r}")
        sparse = len(used.timesteps) < len(timesteps)
        if sparse:
            warnings.warn(
                f"the kernel is of {len(used.timesteps)} steps and the plan is for "
                f"{len(timesteps)}: what lies between its steps is not known, which costs "
                "quality; calibrate with as many steps as you sample with",
                PlanWarning, stacklevel=3,
            )  # fmt: skip
        used = used.at(timesteps)
        used = replace(used, switches=tuple(kept) or used.switches)
    full = schedule.full(timesteps, predictor, used if schedule.kernel else None)
    full = holding(full, used.switches if used else kept)
    if aim:
        if tap != "output" or used is None:
            raise PlanError(
                f"an aim is for latents: it needs a kernel at tap 'output', not {tap!r}"
            )
        if len(used.streams) > 1:
            raise PlanError(f"an aim is for one stream, and the kernel has {list(used.streams)}")
        run = FullRun(used.matrix(), used.sizes, *used.response)
        starts = [full]
        if isinstance(schedule, Even):  # which of the two is better differs from model to model
            other = spread(int(full.sum()), len(full))
            starts.append(holding(other, used.switches))
        found = [aim.steps(np.flatnonzero(s).tolist(), run, used.switches) for s in starts]
        full = np.isin(np.arange(len(full)), found[int(aim.cost(found, run).argmin())])
    by_stream = list(map(used.matrix, used.streams)) if used and predictor.kernel else [None]
    filled = [fill(full, predictor, timesteps, matrix) for matrix in by_stream]
    streams: tuple[str, ...] = used.streams if used and len(filled) > 1 else ()
    weights = np.stack(filled) if streams else filled[0]
    if aim:
        weights = aim.weights(full, weights, run)
    if gate:
        if tap != "delta":
            raise PlanError(f"a gate chooses between the halves of tap 'delta'; {tap!r} has none")
        streams, weights = gate.streams(weights)
    parts = {
        "schedule": schedule, "predictor": predictor, "aim": aim, "gate": gate, "refresh": refresh,
    }  # fmt: skip
    source = {name: str(part) for name, part in parts.items() if part}
    belongs: dict[str, Any] = {}
    if kernel:
        source |= kernel.source
        belongs = {name: getattr(kernel, name) for name in ("scheduler", "pipeline", "passes")}
        belongs["arguments"] = kernel.arguments_at(timesteps)
    if used:
        source["kernel"] = f"{used.features} {used.normalisation}, {used.runs} runs"
        belongs["model"] = used.model
    plan = Plan(full, weights, timesteps, tap, streams, source=source, refresh=refresh, **belongs)
    # Read at more steps than it was made at, a kernel has too few ranks to say what is missed.
    return with_predicted_error(plan, used) if used and not sparse else plan

"""The table of methods: each is a schedule, a predictor and a tap, with its citation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from eigencache.kernel import Kernel
from eigencache.plan import Plan, PlanError
from eigencache.predictors import HiCache, Kriging, Newton, Predictor, Reuse, Taylor
from eigencache.schedules import Interval, Optimal, Schedule


@dataclass(frozen=True)
class Method:
    """A published method: a schedule and a predictor, both with defaults, at a tap.

    Attributes:
        schedule: makes the schedule from `full_steps` and options.
        predictor: makes the predictor from options.
        tap: where the method takes its features (`eigencache.plan.TAPS`).
        cite: where it was published.
        defaults: options that differ from those of the schedule and predictor.
        features, normalisation: of the kernel it wants, if it wants one (`eigencache.kernel`).
    """

    schedule: Callable[..., Schedule]
    predictor: Callable[..., Predictor]
    tap: str
    cite: str
    defaults: Mapping[str, object] = field(default_factory=dict)
    features: str = "full"
    normalisation: str = "second-moment"

    @property
    def needs_kernel(self) -> bool:
        """Whether plans of this method depend on a calibrated kernel."""
        return self.schedule.kernel or self.predictor.kernel

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that the method reads."""
        names = {f.name for part in (self.schedule, self.predictor) for f in fields(part)}
        return tuple(sorted(names - {"full_steps", "every"}))

    def parts(self, full_steps: int, **options) -> tuple[Schedule, Predictor]:
        """Return the schedule and the predictor for a budget and options.

        Raises:
            ValueError: an option is unknown or out of range.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(f"unknown options {unknown}; allowed are {list(self.options)}")
        options = {**self.defaults, **options}
        schedule = self.schedule(full_steps=full_steps, **_of(self.schedule, options))
        return schedule, self.predictor(**_of(self.predictor, options))

    def plan(
        self, full_steps: int, timesteps, kernel: Kernel | None = None, tap: str | None = None,
        **options,
    ) -> Plan:  # fmt: skip
        """Return the plan of this method for a budget of full steps.

        Raises:
            ValueError: an option is unknown or out of range, or the budget cannot be met.
            PlanError: a kernel is missing, or is not of the kind that the method was given for.
        """
        schedule, predictor = self.parts(full_steps, **options)
        kind = (self.features, self.normalisation)
        if self.needs_kernel and kernel and (kernel.features, kernel.normalisation) != kind:
            raise PlanError(
                f"the kernel is of {kernel.features} {kernel.normalisation}, the method wants "
                f"{' '.join(kind)}: calibrate one of that kind"
            )
        return make_plan(schedule, predictor, timesteps, kernel, tap=tap or self.tap)


METHODS: Mapping[str, Method] = {
    "FORA": Method(Interval, Reuse, "modules", "arXiv 2407.01425"),
    "TaylorSeer": Method(Interval, Taylor, "modules", "arXiv 2503.06923"),
    "HiCache": Method(Interval, HiCache, "modules", "arXiv 2508.16984"),
    "Newton": Method(Interval, Newton, "output", "divided differences in sigma"),
    "EigenCache-published": Method(
        Interval, Kriging, "modules", "EigenCache, interval schedule",
        {"window": 3, "jitter": 1e-3}, features="token-mean", normalisation="cosine",
    ),
    # A velocity holds the noise with coefficient one at every step, and so must a forecast: its
    # weights sum to one. Window and jitter were chosen on calibration prompts.
    "EigenCache": Method(
        Optimal, Kriging, "output", "EigenCache, optimal design",
        {"window": 2, "jitter": 1e-6, "ordinary": True},
    ),
}  # fmt: skip


def make_plan(
    schedule: Schedule,
    predictor: Predictor,
    timesteps,
    kernel: Kernel | None = None,
    *,
    tap: str | None = None,
) -> Plan:
    """Return the plan of a schedule and a predictor.

    Args:
        schedule: which steps are full; see `eigencache.schedules`.
        predictor: how the others are forecast; see `eigencache.predictors`.
        timesteps: float `[T]`, the sampler's (`pipe.scheduler.timesteps` after a run).
        kernel: what a schedule or predictor with `kernel = True` needs.
        tap: where features are taken; by default the kernel's tap, or else "output".

    Raises:
        PlanError: a kernel is needed and missing, or was made at another tap or for other
            timesteps.
        ValueError: the schedule cannot meet its budget.
    """
    timesteps = np.asarray(timesteps, np.float64)
    uses_kernel = schedule.kernel or predictor.kernel
    if uses_kernel and kernel is None:
        raise PlanError(f"{schedule} with {predictor} needs a kernel: calibrate one first")
    kernel = kernel if uses_kernel else None
    tap = tap or (kernel.tap if kernel else "output")
    if kernel:
        if kernel.tap != tap:
            raise PlanError(f"the kernel was calibrated at tap {kernel.tap!r}, not at {tap!r}")
        if not np.array_equal(kernel.timesteps, timesteps):
            raise PlanError("the kernel was calibrated for other timesteps: calibrate again")
    full = schedule.full(timesteps, predictor, kernel.matrix() if schedule.kernel else None)
    streams = kernel.streams if predictor.kernel and len(kernel.streams) > 1 else ()
    if streams:
        matrices = [kernel.matrix(stream) for stream in streams]
        weights = np.stack([fill(full, predictor, timesteps, matrix) for matrix in matrices])
    else:
        matrix = kernel.matrix() if predictor.kernel else None
        weights = fill(full, predictor, timesteps, matrix)
    source = {"schedule": str(schedule), "predictor": str(predictor)}
    if kernel:
        source |= {"kernel": f"{kernel.features} {kernel.normalisation}, {kernel.runs} runs"}
        source |= {f"kernel {name}": text for name, text in kernel.source.items()}
    return Plan(full, weights, timesteps, tap, streams, kernel and kernel.model, source)


def fill(full: np.ndarray, predictor: Predictor, timesteps, matrix) -> np.ndarray:
    """Return the weights, float64 `[T, T]`, with which `predictor` fills a schedule's gaps."""
    weights = np.zeros((len(full), len(full)))
    for step in np.flatnonzero(~full):
        past = np.flatnonzero(full[:step])[-predictor.window :]
        weights[step, past] = predictor.weights(past, step, timesteps, matrix)
    return weights


def _of(part, options: Mapping[str, object]) -> dict[str, object]:
    names = {f.name for f in fields(part)}
    return {name: value for name, value in options.items() if name in names}

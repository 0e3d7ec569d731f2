"""The kernel: how similar a model's features are at any two sampler steps, by calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike

from eigencache._checks import check_passes, check_range, check_whole, joined
from eigencache._records import Record

NORMALISATIONS = ("second-moment", "cosine")
# The names of `eigencache.runtime._taps.FEATURES`, which needs torch.
FEATURES = ("full", "stride-8", "token-mean")
# The arguments of a pipeline that decide its timesteps.
STEPPING = ("num_inference_steps", "height", "width", "num_frames", "strength")
# What outputs hold between the steps of a kernel, as a share of their mean square. Without it, 33
# of 100 steps from a kernel of 20 gave latents 6 dB worse; 100 times as much cost 3 dB at 16 of 50.
BETWEEN = 1e-6
# How many widths of the window in which responses are averaged the steps are.
NEARBY = 20


def step_sizes(timesteps: ArrayLike) -> np.ndarray:
    """Return float64 `[T]`: sigma_{s+1} - sigma_s of a flow-matching Euler sampler.

    In flow matching sigma is timestep / 1000, and the sampler ends at sigma 0.
    """
    return np.diff(np.append(np.asarray(timesteps, np.float64) / 1000, 0.0))


class KernelError(ValueError):
    """A kernel is malformed or damaged, or two kernels do not belong together."""


@dataclass(frozen=True, eq=False)
class Kernel(Record):
    """Second-moment matrices over the `T` sampler steps, one for each tapped stream.

    With `f_s` the feature at step `s` as a vector of `D` numbers, the matrix of a stream is
    `C[s, t] = mean over runs of <f_s, f_t> / D`. It is uncentred on purpose: the best linear
    forecast of a raw feature needs the second moment. `normalisation="cosine"` is what the
    EigenCache authors describe instead: the mean over runs of the cosine between f_s and f_t.

    Sums over runs are kept, in float64, so that kernels of different runs merge by addition. In a
    calibration at the output tap, the mean is weighted: a run counts less the further its outputs
    move from step to step (`eigencache.calibration.simulator.Simulator.shares`), or the runs of
    strong guidance would outweigh the others.

    Attributes:
        sums: stream name to float64 `[T, T]`, the sum over runs; divide by `runs` for the mean.
        runs: how many calibration runs (prompt, seed) were summed.
        timesteps: float64 `[T]`; the sampler's timesteps.
        tap: where the features were taken; one of `eigencache.plan.TAPS`.
        features: what was kept of them, one of `eigencache.runtime._taps.FEATURES`.
        normalisation: "second-moment" or "cosine".
        model: fingerprint of the calibrated model (`eigencache.runtime._taps.fingerprint`).
        source: where it came from: prompt file, seed ... (text to text).
        step_sizes: float64 `[T]`, by how much the final latents move per unit of each step's
            output; None for those of a flow-matching Euler sampler (`step_sizes`).
        switches: steps at which the pipeline calls networks otherwise than at the step before;
            designs compute them in full.
        arguments: what the pipeline was called with: names to numbers, texts, flags.
        scheduler: class of the sampler's scheduler; None if it is not known.
        pipeline: class of the pipeline; None if it is not known.
        passes: the least and the greatest of how often the networks took each latent at the first
            step of a run, 2 under guidance by a second pass; None if that is not known.
        responses: float64 `[3, T]`, how outputs answered errors of the latents at each step
            (`eigencache.calibration.recording.Responses`): how often that was seen, and the sums of
            the pull and of the squared scatter. None if it was not measured.

    Raises:
        KernelError: a shape or a value is wrong; the message says which.
    """

    sums: Mapping[str, np.ndarray]
    runs: int
    timesteps: np.ndarray
    tap: str
    features: str = "full"
    normalisation: str = "second-moment"
    model: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    step_sizes: np.ndarray | None = None
    switches: tuple[int, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    pipeline: str | None = None
    responses: np.ndarray | None = None
    passes: tuple[float, float] | None = None

    FORMAT: ClassVar[str] = "eigencache-kernel-2"
    ERROR: ClassVar[type[ValueError]] = KernelError
    ARRAYS: ClassVar[Mapping] = dict.fromkeys(
        ("sums", "timesteps", "step_sizes", "responses"), np.float64
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "switches", tuple(int(step) for step in self.switches))
        object.__setattr__(self, "passes", check_passes(self.passes, KernelError))
        if self.timesteps.ndim != 1 or not np.isfinite(self.timesteps).all():
            raise KernelError("`timesteps` must be a vector of finite numbers")
        steps = len(self.timesteps)
        for name, shape in {"step_sizes": (steps,), "responses": (3, steps)}.items():
            found = getattr(self, name)
            if found is not None and (found.shape != shape or not np.isfinite(found).all()):
                raise KernelError(f"`{name}` must be {' x '.join(map(str, shape))} finite numbers")
        if not all(0 <= step < steps for step in self.switches):
            raise KernelError(f"`switches` {self.switches} are not all among {steps} steps")
        if not self.sums or not isinstance(self.runs, int) or self.runs < 1:
            raise KernelError(
                f"a kernel needs at least one stream and one run, got {self.runs!r} runs of "
                f"{len(self.sums)} streams"
            )
        if self.runs >= 2**53:
            raise KernelError(f"a kernel of {self.runs} runs: more than a float64 can count")
        if self.normalisation not in NORMALISATIONS:
            raise KernelError(f"normalisation {self.normalisation!r} is not in {NORMALISATIONS}")
        for name, matrix in self.sums.items():
            if matrix.shape != (steps, steps):
                raise KernelError(f"stream {name!r}: shape {matrix.shape}, not {(steps, steps)}")
            if not np.isfinite(matrix).all():
                raise KernelError(f"stream {name!r}: not finite; a calibration run diverged")
            if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-12):
                raise KernelError(f"stream {name!r}: not symmetric")
            sizes = np.sqrt(np.maximum(np.diag(matrix), 0))
            if (np.abs(matrix) > (1 + 1e-6) * np.outer(sizes, sizes) + 1e-12).any():
                raise KernelError(f"stream {name!r}: not the second moments of any features")

    @classmethod
    def of_run(
        cls,
        trajectory: Mapping[str, np.ndarray],
        timesteps: ArrayLike,
        normalisation: str = "second-moment",
        **kept: Any,
    ) -> "Kernel":
        """Return the kernel of one run.

        Args:
            trajectory: stream name to its features, float `[T, D]`.
            timesteps: float `[T]`, the sampler's.
            normalisation: "second-moment" or "cosine".
            kept: `tap`, `features`, `model`, `source`: the attributes of that name.

        Raises:
            KernelError: a feature is all zero where a cosine is asked for, or not finite.
        """
        sums = {}
        for name, matrix in trajectory.items():
            matrix = np.asarray(matrix, np.float64)
            gram = matrix @ matrix.T / matrix.shape[1]
            if not np.isfinite(gram).all():
                raise KernelError(f"stream {name!r}: a feature is not finite; the run diverged")
            if normalisation == "cosine":
                norm = np.sqrt(np.diag(gram))
                if not (norm > 0).all():
                    raise KernelError(f"stream {name!r}: a feature is zero and has no cosine")
                gram = gram / np.outer(norm, norm)
            sums[name] = gram
        return cls(sums, 1, np.asarray(timesteps, np.float64), normalisation=normalisation, **kept)

    def __add__(self, other: "Kernel") -> "Kernel":
        """Return the kernel of both sets of runs.

        Args:
            other: of the same model, tap and sampler.

        Arguments that are other numbers become ranges; other texts are no longer known.

        Raises:
            KernelError: the two differ in anything but their runs and arguments.
        """
        alike = "tap", "features", "normalisation", "model", "scheduler", "pipeline", "switches"
        for name in alike:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise KernelError(f"kernels differ in {name}: {mine!r} and {theirs!r}")
        if self.sums.keys() != other.sums.keys():
            raise KernelError("kernels differ in their streams")
        if not np.array_equal(self.timesteps, other.timesteps):
            raise KernelError("kernels differ in their timesteps")
        near = 1e-2 * np.abs(self.sizes).max()  # noise that a scheduler adds leaves rounding
        if not np.allclose(self.sizes, other.sizes, rtol=0, atol=near):
            raise KernelError("kernels differ in their step sizes, hence in the sampler's options")
        sums = {name: matrix + other.sums[name] for name, matrix in self.sums.items()}
        seen = [k.responses for k in (self, other) if k.responses is not None]
        responses = sum(seen[1:], seen[0]) if seen else None
        known = self.passes and other.passes
        both = joined(self.passes, other.passes) if known else None
        arguments = {
            name: joined(value, other.arguments[name])
            for name, value in self.arguments.items()
            if name in other.arguments
        }
        return replace(
            self, sums=sums, runs=self.runs + other.runs, responses=responses, passes=both,
            arguments={name: value for name, value in arguments.items() if value is not ...},
        )  # fmt: skip

    def arguments_at(self, timesteps: ArrayLike) -> dict[str, Any]:
        """Return the arguments that hold for a sampler too: at other timesteps, not those of steps.

        Args:
            timesteps: float `[T']`, the sampler's.
        """
        new = np.asarray(timesteps, np.float64)
        same = new.shape == self.timesteps.shape and np.allclose(new, self.timesteps, 1e-4, 1e-4)
        return {k: v for k, v in self.arguments.items() if same or k not in STEPPING}

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the tapped streams."""
        return tuple(self.sums)

    def matrix(self, stream: str | None = None) -> np.ndarray:
        """Return the mean over runs of a stream's second moments, float64 `[T, T]`.

        Args:
            stream: its name; None for the mean over all streams.

        Raises:
            KernelError: there is no such stream.
        """
        if stream is None:
            return self._total() / (self.runs * len(self.sums))
        if stream not in self.sums:
            raise KernelError(f"no stream {stream!r} in the kernel; it has {self.streams}")
        return self.sums[stream] / self.runs

    def truncated(self, rank: int) -> tuple["Kernel", float]:
        """Return the kernel with each matrix cut to its leading eigenpairs (Karhunen-Loeve).

        Args:
            rank: how many to keep, from 1 to T.

        Returns:
            The kernel U_r diag(l_r) U_r^T, and the share of the energy (the trace) that it keeps,
            over all streams together.

        Raises:
            KernelError: `rank` is not between 1 and T.
        """
        if not 1 <= rank <= len(self.timesteps):
            raise KernelError(f"rank must lie between 1 and {len(self.timesteps)}, got {rank}")
        sums, kept = {}, 0.0
        for name, matrix in self.sums.items():
            values, vectors = np.linalg.eigh(matrix)
            values, vectors = values[-rank:], vectors[:, -rank:]
            cut = (vectors * values) @ vectors.T
            sums[name] = (cut + cut.T) / 2
            kept += values.sum()
        return replace(self, sums=sums), kept / sum(
            np.trace(matrix) for matrix in self.sums.values()
        )

    def shared(self) -> "Kernel":
        """Return the kernel with the mean over all streams in place of each stream's matrix."""
        return replace(self, sums=dict.fromkeys(self.sums, self._total() / len(self.sums)))

    def _total(self) -> np.ndarray:
        """Return the sum over all streams and runs."""
        return np.sum(list(self.sums.values()), axis=0)

    @property
    def sizes(self) -> np.ndarray:
        """The `step_sizes`; where they are not known, those of a flow-matching Euler sampler."""
        return step_sizes(self.timesteps) if self.step_sizes is None else self.step_sizes

    @property
    def response(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pull and the scatter at each step, float64 `[T]` each (`eigencache.aim`).

        They are means over the steps nearby; 0 if nothing was measured.
        """
        none = np.zeros((3, len(self.timesteps)))
        return response_of(none if self.responses is None else self.responses)

    def smoothed(self, share: float, degree: int = 8) -> "Kernel":
        """Return the kernel drawn towards a smooth one: `(1 - share) C + share P C P`.

        P projects onto polynomials in the timestep. With few calibration runs this removes what is
        peculiar to them.

        Args:
            share: of the smooth kernel, 0 to 1.
            degree: of the polynomials.

        Raises:
            KernelError: `share` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise KernelError(f"the smooth kernel's share must lie between 0 and 1, got {share}")
        low, high = self.timesteps.min(), self.timesteps.max()
        scaled = (2 * self.timesteps - low - high) / (high - low)
        basis, _ = np.linalg.qr(chebyshev.chebvander(scaled, min(degree, len(scaled) - 1)))
        project = basis @ basis.T
        sums = {}
        for name, matrix in self.sums.items():
            smooth = project @ matrix @ project
            sums[name] = (1 - share) * matrix + share * (smooth + smooth.T) / 2
        return replace(self, sums=sums)

    def at(self, timesteps: ArrayLike, step_sizes: ArrayLike | None = None) -> "Kernel":
        """Return the kernel of a sampler that visits other timesteps of the same model.

        A kernel is a smooth function of the timestep: the eigenvectors of each matrix, by cubic
        splines, are read at the new timesteps. The result is positive semi-definite too. At more
        timesteps than there are here, a little white noise stands for what lies between them.

        Args:
            timesteps: float `[T']`, the other sampler's, descending.
            step_sizes: float `[T']`; by default those of this kernel, interpolated too.

        Raises:
            KernelError: there are fewer than four timesteps here, or the new ones are not finite or
                lie beyond these, by more than two steps at an end or by half of them.
        """
        new = np.asarray(timesteps, np.float64)
        sizes = self.step_sizes if step_sizes is None else np.asarray(step_sizes, np.float64)
        if np.array_equal(new, self.timesteps):
            return replace(self, step_sizes=sizes)
        if new.ndim != 1 or not np.isfinite(new).all():
            raise KernelError("the timesteps must be a vector of finite numbers")
        if len(self.timesteps) < 4 or len(set(self.timesteps)) < len(self.timesteps):
            raise KernelError(
                f"a kernel of {len(self.timesteps)} timesteps, {len(set(self.timesteps))} of them "
                "different, cannot be read at others: that takes at least four, all different, and "
                "a second-order sampler (Heun) repeats its own; calibrate with the sampler you use"
            )
        low, high = self.timesteps.min(), self.timesteps.max()
        ends = 2 * np.abs(np.diff(np.sort(self.timesteps))[[0, -1]])
        inside = np.mean((new >= low) & (new <= high))
        if new.min() < low - ends[0] or new.max() > high + ends[1] or inside < 0.5:
            raise KernelError(
                f"the kernel is of timesteps {high:g} to {low:g} and says nothing of "
                f"{new.max():g} to {new.min():g}: calibrate with the sampler that you use"
            )
        unknown = np.zeros(len(new))
        if len(new) > len(self.timesteps):
            away = np.abs(np.subtract.outer(new, self.timesteps)).min(1)
            step = np.abs(np.diff(self.timesteps)).mean()
            unknown = BETWEEN * np.minimum(2 * away / step, 1) ** 2
        sums = {}
        for name, matrix in self.sums.items():
            values, vectors = np.linalg.eigh(matrix)
            scaled = vectors * np.sqrt(np.maximum(values, 0))
            read = spline(self.timesteps, scaled, new)
            sums[name] = read @ read.T + np.diag(unknown * np.square(read).sum(1))
        if step_sizes is None and sizes is not None:
            # The way the latents have gone is a function of the timestep. It ends at 0 or below.
            end = 0.0 if self.timesteps[-1] > 0 else self.timesteps[-1] - 1
            come = np.append(0.0, np.cumsum(sizes))[:, None]
            knots, wanted = np.append(self.timesteps, end), np.append(new, end)
            sizes = np.diff(spline(knots, come, wanted)[:, 0])
        switches = {int(np.argmax(new <= self.timesteps[s])) for s in self.switches}
        responses = self.responses
        if responses is not None:
            order = np.argsort(self.timesteps)
            knots = self.timesteps[order]
            responses = np.array([np.interp(new, knots, row[order]) for row in responses])
        return replace(
            self, sums=sums, timesteps=new, step_sizes=sizes,
            switches=tuple(sorted(switches - {0})), responses=responses,
            arguments=self.arguments_at(new),
        )  # fmt: skip


def response_of(responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `Kernel.response` does from `Kernel.responses`."""
    steps = responses.shape[1]
    if not responses[0].any():
        return np.zeros(steps), np.zeros(steps)
    apart = np.subtract.outer(np.arange(steps), np.arange(steps)) * (NEARBY / steps)
    # The second term reaches where nothing was seen nearby.
    near = np.exp(-np.square(apart) / 2) + 1e-9 / (1 + np.square(apart))
    often, pull, scatter = responses @ near
    return pull / often, np.sqrt(scatter / often)


def spline(knots: np.ndarray, values: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return natural cubic splines through `values` `[K, D]` at `knots`, read at `new`: `[N, D]`.

    Beyond the knots they continue as straight lines. Knots may be in any order.
    """
    order = np.argsort(knots)
    x, y = knots[order], values[order]
    h = np.diff(x)
    slope = np.diff(y, axis=0) / h[:, None]
    count = len(x)
    system = np.zeros((count, count))
    system[0, 0] = system[-1, -1] = 1.0
    inner = np.arange(1, count - 1)
    system[inner, inner - 1], system[inner, inner + 1] = h[:-1], h[1:]
    system[inner, inner] = 2 * (h[:-1] + h[1:])
    right = np.zeros_like(y)
    right[1:-1] = 6 * np.diff(slope, axis=0)
    bend = np.linalg.solve(system, right)  # second derivatives at the knots
    i = np.clip(np.searchsorted(x, new) - 1, 0, count - 2)
    inside = np.clip(new, x[0], x[-1])
    a, b = (inside - x[i])[:, None], (x[i + 1] - inside)[:, None]
    w = h[i][:, None]
    read = (bend[i] * b**3 + bend[i + 1] * a**3) / (6 * w)
    read += (y[i] / w - bend[i] * w / 6) * b + (y[i + 1] / w - bend[i + 1] * w / 6) * a
    ends = {True: slope[0] - h[0] * bend[1] / 6, False: slope[-1] + h[-1] * bend[-2] / 6}
    for low in (True, False):
        beyond = new < x[0] if low else new > x[-1]
        read[beyond] += (new - inside)[beyond, None] * ends[low]
    return read


class Kind(NamedTuple):
    """Which kernel: its tap, features and normalisation, and of how many runs (None: all).

    As text it is TAP.FEATURES.NORMALISATION, followed by .RUNS if that is set.
    """

    tap: str
    features: str
    normalisation: str
    runs: int | None = None

    @classmethod
    def of(cls, name: str) -> "Kind":
        """Read what `str` returned."""
        tap, features, normalisation, *runs = name.split(".")
        return cls(tap, features, normalisation, *map(int, runs))

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)

    def among(self, count: int) -> "Kind":
        """Return this kind with a number of runs, all of so many unless it states fewer.

        Raises:
            ValueError: it states more.
        """
        if (self.runs or 0) > count:
            raise ValueError(f"runs={self.runs}: there are only {count} prompts for the kernel")
        return self._replace(runs=self.runs or count)


# What the design of a schedule wants by default.
OUTPUT = Kind("output", "full", "second-moment")


@dataclass(frozen=True)
class KernelUse:
    """Which calibrated kernel a method needs, and how it is changed before use.

    Attributes:
        features: what is kept of a feature, one of `FEATURES`.
        normalisation: one of `NORMALISATIONS`.
        runs: how many of the calibration runs to use, from the first; None for all.
        rank: eigenpairs to keep (`Kernel.truncated`); None for all.
        shared: whether all streams share one matrix (`Kernel.shared`).
        smooth: the share of the smooth kernel in it (`Kernel.smoothed`), 0 to 1.

    Raises:
        ValueError: an option is out of range.
    """

    features: str = "full"
    normalisation: str = "second-moment"
    runs: int | None = None
    rank: int | None = None
    shared: bool = False
    smooth: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("features", FEATURES), ("normalisation", NORMALISATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("runs", "rank"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), low=1)
        if not isinstance(self.shared, bool):
            raise ValueError(f"shared must be true or false, got {self.shared!r}")
        check_range("smooth", self.smooth, 0, 1)

    def kind(self, tap: str) -> Kind:
        """Return which kernel is to be calibrated.

        Args:
            tap: where features are taken.
        """
        return Kind(tap, self.features, self.normalisation, self.runs)

    def of(self, kernel: Kernel) -> Kernel:
        """Return the kernel in the form that the method needs.

        Args:
            kernel: as it was calibrated.

        Raises:
            KernelError: the kernel is of another kind or number of runs, or of fewer steps than
                `rank`.
        """
        kind = (self.features, self.normalisation)
        if (kernel.features, kernel.normalisation) != kind:
            raise KernelError(
                f"the kernel holds {kernel.features} {kernel.normalisation}, the method needs "
                f"{' '.join(kind)}: calibrate one of that kind"
            )
        if self.runs is not None and kernel.runs != self.runs:
            raise KernelError(f"the kernel is of {kernel.runs} runs, the method needs {self.runs}")
        done = {}
        if self.smooth:
            kernel = kernel.smoothed(self.smooth)
            done["smooth"] = str(self.smooth)
        if self.shared:
            kernel = kernel.shared()
            done["shared"] = "by all streams"
        if self.rank is not None:
            kernel, energy = kernel.truncated(self.rank)
            done["rank"] = f"{self.rank}, with {energy:.6f} of the energy"
        return replace(kernel, source={**kernel.source, **done})

"""Recording: the features of full runs, and the kernels that they sum up to."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eigencache.calibration._calls import Stop, latent_only, quiet
from eigencache.calibration.simulator import Passes, Stepper, shares_of, switches_of
from eigencache.kernel import Kernel
from eigencache.runtime._driver import Driver, Policy, StepCall
from eigencache.runtime._taps import FEATURES, Stream, fingerprint, network_of, tapped, watching

Streams = Mapping[str, Stream]


class Recorder(Policy):
    """Lets a pipeline run in full, and hands on what its scheduler is given.

    Args:
        keep: called with each output; by default nothing is kept.

    Attributes:
        timesteps: of the steps so far.
        sigmas: float64, the scheduler's noise levels; empty where it has none.
        passes: of each step so far, which networks were called how often.
    """

    def __init__(self, keep: Callable | None = None) -> None:
        self.keep = keep
        self.timesteps: list[float] = []
        self.sigmas = np.empty(0)
        self.passes: list[Passes] = []
        self.moments: list[Any] = []  # the timesteps as the pipeline passes them
        self.stepper: Stepper | None = None

    def given(self, call: StepCall) -> None:
        if call.index == 0:
            self.stepper = Stepper(call, self.moments)
            sigmas = getattr(call.scheduler, "sigmas", None)
            if isinstance(sigmas, torch.Tensor):
                self.sigmas = sigmas.double().cpu().numpy()
        if self.keep:
            self.keep(call.output)
        self.passes.append(call.passes)
        self.moments.append(call.timestep)
        self.timesteps.append(float(torch.as_tensor(call.timestep).flatten()[0]))

    def of_sampler(self) -> dict[str, Any]:
        """Return what a kernel of the output says of the sampler: `step_sizes` and `switches`."""
        assert self.stepper is not None, "a run was recorded"
        return {
            "step_sizes": self.stepper.step_sizes(len(self.timesteps)),
            "switches": switches_of(self.passes),
        }

    def sibling(self) -> Policy:
        return Policy()


@contextlib.contextmanager
def recording(
    pipe: Any, taps: Iterable[str], keep: Callable[[str, str, Any], None],
    chosen: Callable[[Streams], Streams] = lambda streams: streams,
) -> Iterator[Recorder]:  # fmt: skip
    """Hand on the features of taps while a pipeline samples in full, inside a `with` block.

    Args:
        pipe: a pipeline of diffusers.
        taps: of `eigencache.plan.TAPS`.
        keep: called with a tap, the name of a stream and its feature: at the tap "output" once per
            step, at others at every call of the stream's modules.
        chosen: called with the streams of a tap inside the network, returns those to record.

    Yields:
        What knows the timesteps of the steps so far, of which the present one is none yet.
    """
    taps = set(taps)
    with contextlib.ExitStack() as stack:
        for tap in sorted(taps - {"output"}):
            for name, stream in chosen(tapped(network_of(pipe), tap).streams).items():
                stack.enter_context(watching(stream, partial(keep, tap, name)))
        outputs = partial(keep, "output", "output") if "output" in taps else None
        recorder = Recorder(outputs)
        stack.enter_context(quiet(pipe))
        driver = Driver(pipe, recorder)
        driver.attach()
        stack.callback(driver.detach)
        yield recorder


def timesteps_of(pipe: Any, call: Mapping[str, Any]) -> np.ndarray:
    """Return the timesteps that a pipeline's scheduler is stepped through, float64 `[T]`.

    The call is left at its first step, or run in full where that does not tell.

    Args:
        pipe: a pipeline of diffusers.
        call: its arguments.
    """
    recorder = _First()
    driver = Driver(pipe, recorder)
    driver.attach()
    try:
        with quiet(pipe):
            latent_only(pipe, call, seed=0)
    except Stop:
        pass
    finally:
        driver.detach()
    return np.array(recorder.timesteps)


class _First(Recorder):
    """Leaves the run at its first step, if that tells all timesteps."""

    def begin(self, timesteps: np.ndarray | None, pipe: Any) -> None:
        if timesteps is not None:
            self.timesteps = timesteps.tolist()
            raise Stop


class Kind(NamedTuple):
    """Which kernel: its tap, features and normalisation, and of how many runs (None: all)."""

    tap: str
    features: str
    normalisation: str
    runs: int | None = None

    @classmethod
    def of(cls, name: str) -> "Kind":
        """Read TAP.FEATURES.NORMALISATION or that and .RUNS."""
        tap, features, normalisation, *runs = name.split(".")
        return cls(tap, features, normalisation, *map(int, runs))


def record_kernels(
    pipe: Any, calls: Sequence[Mapping[str, Any]], seeds: Sequence[int], kinds: list[Kind],
    source: Mapping[str, str] | None = None,
) -> list[Kernel]:  # fmt: skip
    """Return one kernel for each kind, from a full run of every call.

    Only one trajectory is held at a time, so memory does not grow with the number of calls. Where
    a pipeline calls its network several times per step, these calls make one feature.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments of each call.
        seeds: of the noise of each call.
        kinds: of the kernels.
        source: what the kernels say of where they come from.
    """
    kernels: dict[int, Kernel] = {}
    outputs: dict[int, list[Kernel]] = {}  # of each run
    model = fingerprint(network_of(pipe))
    pairs = list(zip(calls, seeds, strict=True))
    for index, (call, seed) in enumerate(tqdm(pairs, desc="calibrate", unit="run", delay=5)):
        used = [kind for kind in kinds if kind.runs is None or index < kind.runs]
        kept: dict[tuple[str, str], dict[str, list[torch.Tensor]]] = {k[:2]: {} for k in used}

        def keep(tap: str, stream: str, feature: Any, kept: dict = kept) -> None:
            for (of, features), streams in kept.items():
                if of == tap:
                    streams.setdefault(stream, []).append(FEATURES[features](feature).cpu())

        with recording(pipe, {tap for tap, _ in kept}, keep) as recorder:
            latent_only(pipe, call, seed)
        timesteps = np.array(recorder.timesteps)
        for i, kind in enumerate(kinds):
            if kind not in used:
                continue
            trajectory = {
                name: torch.stack(rows).reshape(len(timesteps), -1).numpy()
                for name, rows in kept[kind[:2]].items()
            }
            sampler = recorder.of_sampler() if kind.tap == "output" else {}
            kernel = Kernel.of_run(
                trajectory, timesteps, kind.normalisation, tap=kind.tap, features=kind.features,
                model=model, source=source or {}, **sampler,
            )  # fmt: skip
            if kind.tap == "output" and kind.normalisation == "second-moment":
                outputs.setdefault(i, []).append(kernel)
            else:
                kernels[i] = kernels[i] + kernel if i in kernels else kernel
    kernels |= {i: _evenly(runs) for i, runs in outputs.items()}
    return [kernels[i] for i in range(len(kinds))]


def _evenly(runs: Sequence[Kernel]) -> Kernel:
    """Return the kernel of runs that weigh as in `Simulator.kernel`."""
    sizes = runs[0].step_sizes
    assert sizes is not None  # the recorder knows its scheduler
    shares = shares_of([run.matrix() for run in runs], sizes)
    weighed = [
        replace(run, sums={name: share * matrix for name, matrix in run.sums.items()})
        for run, share in zip(runs, shares, strict=True)
    ]
    return sum(weighed[1:], weighed[0])

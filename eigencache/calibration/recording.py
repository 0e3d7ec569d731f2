"""Recording: the features of full runs, and the kernels that they sum up to."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eigencache.calibration.simulator import latent_only, quiet, sample_of
from eigencache.kernel import Kernel
from eigencache.runtime._driver import Driver, Policy, StepCall
from eigencache.runtime._taps import FEATURES, Stream, fingerprint, network_of, tapped, watching

Streams = Mapping[str, Stream]


class Recorder(Policy):
    """Lets a pipeline run in full, and hands on what its scheduler is given and gives back.

    Args:
        keep: called with each output; by default nothing is kept.

    Attributes:
        timesteps: of the steps so far.
        sigmas: float64, the scheduler's noise levels; empty where it has none.
        samples: the latents after each step so far, if `keeps_samples`.
    """

    def __init__(self, keep: Callable | None = None, keeps_samples: bool = False) -> None:
        self.keep, self.keeps_samples = keep, keeps_samples
        self.timesteps: list[float] = []
        self.samples: list[torch.Tensor] = []
        self.sigmas = np.empty(0)

    def given(self, call: StepCall) -> None:
        self.timesteps.append(float(torch.as_tensor(call.timestep).flatten()[0]))
        sigmas = getattr(call.scheduler, "sigmas", None)
        if call.index == 0 and isinstance(sigmas, torch.Tensor):
            self.sigmas = sigmas.double().cpu().numpy()
        if self.keep:
            self.keep(call.output)

    def moved(self, call: StepCall, result: Any) -> Any:
        if self.keeps_samples:
            self.samples.append(sample_of(result).clone())
        return result

    def sibling(self) -> Policy:
        return Policy()


@contextlib.contextmanager
def recording(
    pipe: Any, taps: Iterable[str], keep: Callable[[str, str, Any], None],
    chosen: Callable[[Streams], Streams] = lambda streams: streams, keeps_samples: bool = False,
) -> Iterator[Recorder]:  # fmt: skip
    """Hand on the features of taps while a pipeline samples in full, inside a `with` block.

    Args:
        pipe: a pipeline of diffusers.
        taps: of `eigencache.plan.TAPS`.
        keep: called with a tap, the name of a stream and its feature: at the tap "output" once per
            step, at others at every call of the stream's modules.
        chosen: called with the streams of a tap inside the network, returns those to record.
        keeps_samples: whether to keep the latents after each step too.

    Yields:
        What knows the timesteps, and the latents.
    """
    taps = set(taps)
    with contextlib.ExitStack() as stack:
        for tap in sorted(taps - {"output"}):
            for name, stream in chosen(tapped(pipe.transformer, tap).streams).items():
                stack.enter_context(watching(stream, partial(keep, tap, name)))
        outputs = partial(keep, "output", "output") if "output" in taps else None
        recorder = Recorder(outputs, keeps_samples)
        stack.enter_context(quiet(pipe))
        driver = Driver(pipe, recorder)
        driver.attach()
        stack.callback(driver.detach)
        yield recorder


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
            kernel = Kernel.of_run(
                trajectory, timesteps, kind.normalisation, tap=kind.tap, features=kind.features,
                model=model, source=source or {},
            )  # fmt: skip
            kernels[i] = kernels[i] + kernel if i in kernels else kernel
    return [kernels[i] for i in range(len(kinds))]

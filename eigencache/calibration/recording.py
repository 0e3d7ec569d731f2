"""Recording: the features of full runs, and the kernels that they sum up to."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eigencache.calibration._calls import called, forked, quiet, sample_of
from eigencache.design import evenly, fill
from eigencache.kernel import OUTPUT, Kernel, Kind
from eigencache.plan import Plan, PlanError
from eigencache.predictors import Reuse
from eigencache.runtime._blocks import watching
from eigencache.runtime._driver import Driver, Pass, Policy, StepCall
from eigencache.runtime._guidance import guidance_of, taken
from eigencache.runtime._policies import OutputPolicy
from eigencache.runtime._taps import FEATURES, fingerprint, map_tensors, network_of

# How far outputs are moved to see how the scheduler answers: so little that no scheduler clips, and
# more than single precision, in which many schedulers step, rounds away.
_PROBE = 2**-6
# The shares of full steps with which responses are measured. Two more made no better plans.
SPARSE = (0.1, 0.18)
# Squared and against the output, latents that are off by less are so by rounding alone.
EXACT = 1e-10
# What a call of `step` hands on to the next, beside the latents.
_CARRIED = ("generator", "old_pred_original_sample", "timestep_back")


class Recorder(Policy):
    """Lets a pipeline run in full, and keeps what is known of its scheduler's steps.

    Args:
        keep: called with each output; by default nothing is kept.

    Attributes:
        moments: the timesteps of the steps so far, as the pipeline passes them.
        passes: of each step so far, which networks were called how often.
        taken: how often they took each latent at the first step.
    """

    def __init__(self, keep: Callable | None = None) -> None:
        self.keep = keep
        self.passes: list[tuple[Pass, ...]] = []
        self.moments: list[Any] = []
        self.stepper: Stepper | None = None
        self.taken = 0.0

    def given(self, call: StepCall) -> None:
        count = len(call.scheduler.timesteps)
        if call.index >= count or (call.index == 0 and self.moments):
            raise PlanError(
                f"the pipeline takes more steps in one call than the {count} of its scheduler, as "
                "one does that samples twice (FreeInit) or steps each of several latents by "
                "itself: plans cannot be made for that; for a pipeline that samples twice there "
                "are the built-in ones"
            )
        if call.index == 0:
            self.stepper, self.taken = Stepper(call, self.moments), taken(call)[0]
        if self.keep:
            self.keep(call.output)
        self.passes.append(call.passes)
        self.moments.append(call.timestep)

    @property
    def timesteps(self) -> np.ndarray:
        """The timesteps of the steps so far, float64 `[T]`."""
        return np.array([float(torch.as_tensor(t).flatten()[0]) for t in self.moments])

    @property
    def denoisers(self) -> set[str]:
        """The networks that are called after the first step, by name."""
        return {name for step in self.passes[1:] for name, *_ in step}

    @property
    def switches(self) -> tuple[int, ...]:
        """The steps at which those networks are called otherwise than at the step before."""
        names = self.denoisers
        found = [[part for part in step if part[0] in names] for step in self.passes]
        return tuple(s for s in range(1, len(found)) if found[s] != found[s - 1])

    def step_sizes(self) -> np.ndarray:
        """Return what `Stepper.step_sizes` says of the run."""
        assert self.stepper is not None, "a run was recorded"
        return self.stepper.step_sizes(len(self.moments))

    def sibling(self) -> Policy:
        return Policy()


class Responses(OutputPolicy):
    """Samples with few full steps, and sees how their outputs answer the errors of the others.

    Skipped steps repeat the last output. At each full step the latents are then off by e, the sum
    of what the outputs so far missed by, times the step sizes; and the output is off by pull e plus
    what is at right angles to e, of size scatter |e|.

    Args:
        outputs: of the full run of the same images at each step, float `[N, ...]` each.
        step_sizes: float64 `[T]`, as of `Stepper`.
        plan: from `sparse`.
        read: makes `[N, ...]` of an output.

    Attributes:
        seen: float64 `[3, T]`, as `Kernel.responses`.
    """

    def __init__(
        self, outputs: Sequence[torch.Tensor], step_sizes: np.ndarray, plan: Plan,
        read: Callable[[Any], torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__(plan)
        self.outputs, self.step_sizes, self.read = outputs, step_sizes, read
        self.seen, self.off = np.zeros((3, len(plan))), torch.zeros(())

    def given(self, call: StepCall) -> None:
        super().given(call)
        step = call.index
        right = self.outputs[step].flatten(1).double()
        missed = self.read(call.output).flatten(1).double() - right
        if step and self.plan.full[step]:
            square = self.off.square().sum(1)
            pull = (missed * self.off).sum(1) / square
            scatter = (missed - pull[:, None] * self.off).square().sum(1) / square
            known = square > EXACT * right.square().sum(1)
            found = [known.double(), pull, scatter]
            self.seen[:, step] += [float(part[known].sum()) for part in found]
        self.off = self.off + float(self.step_sizes[step]) * missed


def sparse(timesteps: np.ndarray, share: float, switches: Sequence[int]) -> Plan:
    """Return the plan of `Responses`: a share of the steps, evenly apart, and the switches."""
    steps = len(timesteps)
    full = evenly(max(2, round(share * steps)), steps)
    full[list(switches)] = True
    return Plan(full, fill(full, Reuse(), timesteps, None), timesteps, "output")


class Stepper:
    """A scheduler as it is before a step, to see where outputs would lead.

    Args:
        call: of the step.
        timesteps: of all steps, as the pipeline passes them.
    """

    def __init__(self, call: StepCall, timesteps: Sequence[Any]) -> None:
        self.call, self.scheduler = call, copy.deepcopy(call.scheduler)
        self.timesteps = timesteps
        self.arguments = call.again(None, None, None)
        self.generator = copy.deepcopy(self.arguments.get("generator"))  # as it is now

    def end(self, sample: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the latents after as many steps as there are outputs.

        Noise that the scheduler adds is the same at every call.
        """
        scheduler, arguments = copy.deepcopy(self.scheduler), dict(self.arguments)
        if self.generator is not None:
            arguments["generator"] = copy.deepcopy(self.generator)
        timesteps = self.timesteps[self.call.index :]
        with forked():
            for timestep, output in zip(timesteps, outputs, strict=False):
                given = self.call.again(output, timestep, sample)
                kept = {k: v for k, v in arguments.items() if k in _CARRIED}
                result = type(scheduler).step(scheduler, **given | kept)
                sample = sample_of(result)
                if "old_pred_original_sample" in arguments:  # CogVideoX's DPM
                    arguments |= {
                        "old_pred_original_sample": result[1], "timestep_back": timestep,
                    }  # fmt: skip
        return sample

    def step_sizes(self, count: int) -> np.ndarray:
        """Return by how much the final latents move per unit of each step's output, float64 `[T]`.

        All steps at once: the latents are `T` numbers, and number `s` sees the output of step `s`.

        Args:
            count: the number of steps; the scheduler is at the first.

        Raises:
            PlanError: the scheduler does not answer with finite numbers.
        """
        if isinstance(self.generator, list):
            self.generator = self.generator[0]
        device = self.call.sample.device
        nothing = torch.zeros(1, count, 1, 1, dtype=torch.float64, device=device)
        nudges = _PROBE * torch.eye(count, dtype=torch.float64, device=device)
        nudges = nudges.reshape(count, 1, count, 1, 1)
        moved = self.end(nothing, list(nudges)) - self.end(nothing, [nothing] * count)
        sizes = (moved.double().flatten() / _PROBE).cpu().numpy()
        if not np.isfinite(sizes).all():
            raise PlanError(
                f"{type(self.scheduler).__name__}: its outputs do not move the latents by finite "
                "amounts, so no plan can be designed for it; choose another scheduler"
            )
        return sizes


@contextlib.contextmanager
def recording(
    pipe: Any, taps: Iterable[str], keep: Callable[[str, str, Any], None]
) -> Iterator[Recorder]:
    """Hand on the features of taps while a pipeline samples in full, inside a `with` block.

    Args:
        pipe: a pipeline of diffusers.
        taps: of `eigencache.plan.TAPS`.
        keep: called with a tap, the name of a stream and its feature: at the tap "output" once per
            step, at others at every call of the stream's modules.

    Yields:
        What knows the timesteps of the steps so far, of which the present one is none yet.
    """
    taps = set(taps)
    with contextlib.ExitStack() as stack:
        for tap in sorted(taps - {"output"}):
            stack.enter_context(watching(network_of(pipe), tap, partial(keep, tap)))
        outputs = partial(keep, "output", "output") if "output" in taps else None
        recorder = Recorder(outputs)
        stack.enter_context(quiet(pipe))
        stack.enter_context(Driver(pipe, recorder))
        yield recorder


class Outline(NamedTuple):
    """What is known of a call of a pipeline before it is made.

    Attributes:
        timesteps: float64 `[T]`, those that the scheduler is stepped through.
        switches: the steps at which networks are called otherwise than at the step before.
        guidance: the scale of guidance; 1 if there is none.
    """

    timesteps: np.ndarray
    switches: tuple[int, ...]
    guidance: float


def outline(pipe: Any, call: Mapping[str, Any]) -> Outline:
    """Return what a call of a pipeline is like, at the price of a step or two.

    Args:
        pipe: a pipeline of diffusers.
        call: its arguments.
    """
    recorder = _Outline()
    with quiet(pipe), Driver(pipe, recorder):
        called(pipe, call, seed=0)
    return Outline(recorder.timesteps, recorder.switches, recorder.guidance)


def timesteps_of(pipe: Any, call: Mapping[str, Any]) -> np.ndarray:
    """Return the timesteps that a call steps a pipeline's scheduler through, float64 `[T]`."""
    return outline(pipe, call).timesteps


class _Outline(Recorder):
    """Runs the networks at the first step, and where they are called as at no step before."""

    first: Any = None
    guidance = 1.0

    def computes(self, step: int) -> bool:
        return step == 0

    def given(self, call: StepCall) -> None:
        if call.index == 0:
            self.first = map_tensors(torch.clone, call.output)
            self.guidance = guidance_of(call)
        call.output = map_tensors(torch.clone, self.first)
        super().given(call)


def record_kernels(
    pipe: Any, calls: Sequence[Mapping[str, Any]], seeds: Sequence[int], kinds: list[Kind],
    source: Mapping[str, str] | None = None,
) -> list[Kernel]:  # fmt: skip
    """Return one kernel for each kind, from a full run of every call.

    Only one trajectory is held at a time; of earlier runs, only the kernels are kept. Where a
    pipeline calls its network several times per step, these calls make one feature.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments of each call.
        seeds: of the noise of each call.
        kinds: of the kernels.
        source: what the kernels say of where they come from.
    """
    kernels: list[list[Kernel]] = [[] for _ in kinds]  # of each run
    model = fingerprint(network_of(pipe))
    pairs = list(zip(calls, seeds, strict=True))
    for index, (call, seed) in enumerate(tqdm(pairs, desc="calibrate", unit="run", delay=5)):
        used = [kind for kind in kinds if kind.runs is None or index < kind.runs]
        kept: dict[tuple[str, str], dict[str, list[torch.Tensor]]] = {k[:2]: {} for k in used}
        if any(kind.tap == "output" for kind in used):
            kept.setdefault(OUTPUT[:2], {})

        def keep(tap: str, stream: str, feature: Any, kept: dict = kept) -> None:
            for (of, features), streams in kept.items():
                if of == tap:
                    streams.setdefault(stream, []).append(FEATURES[features](feature).cpu())

        with recording(pipe, {tap for tap, _ in kept}, keep) as recorder:
            called(pipe, call, seed)
        timesteps = recorder.timesteps
        sampler: dict[str, Any] = {}
        if OUTPUT[:2] in kept:
            sampler = {"step_sizes": recorder.step_sizes(), "switches": recorder.switches}
            plan = sparse(timesteps, SPARSE[index % len(SPARSE)], sampler["switches"])
            outputs_of = [row[None] for row in kept[OUTPUT[:2]]["output"]]
            responses = Responses(outputs_of, sampler["step_sizes"], plan, _full)
            with quiet(pipe), Driver(pipe, responses):
                called(pipe, call, seed)
            sampler["responses"] = responses.seen
        for kind, runs in zip(kinds, kernels, strict=True):
            if kind not in used:
                continue
            trajectory = {
                name: torch.stack(rows).reshape(len(timesteps), -1).numpy()
                for name, rows in kept[kind[:2]].items()
            }
            kernel = Kernel.of_run(
                trajectory, timesteps, kind.normalisation, tap=kind.tap, features=kind.features,
                model=model, source=source or {}, passes=(recorder.taken, recorder.taken),
                **(sampler if kind.tap == "output" else {}),
            )  # fmt: skip
            runs.append(kernel)
    moments = ("output", "second-moment")
    return [
        weighed(runs) if (kind.tap, kind.normalisation) == moments else sum(runs[1:], runs[0])
        for kind, runs in zip(kinds, kernels, strict=True)
    ]


def _full(output: Any) -> torch.Tensor:
    """Return an output as one row, on the CPU."""
    return FEATURES["full"](output).cpu()[None]


def weighed(runs: Sequence[Kernel]) -> Kernel:
    """Return the kernel of runs at the output tap, each weighed by its share (`shares_of`)."""
    sizes = runs[0].step_sizes
    assert sizes is not None, "a recorder knows its scheduler"
    shares = shares_of([run.matrix() for run in runs], sizes)
    parts = [
        replace(run, sums={name: share * matrix for name, matrix in run.sums.items()})
        for run, share in zip(runs, shares, strict=True)
    ]
    return sum(parts[1:], parts[0])


def shares_of(grams: Sequence[np.ndarray], step_sizes: np.ndarray) -> np.ndarray:
    """Return how much each run weighs, float64 `[N]`: see `Simulator`."""
    moved = [
        np.square(step_sizes[1:]) @ (np.diag(g)[1:] - 2 * np.diag(g, 1) + np.diag(g)[:-1])
        for g in grams
    ]
    if not min(moved) > 0:  # outputs that never move weigh nothing anyway
        return np.ones(len(grams))
    shares = 1 / np.array(moved)
    return shares / shares.mean()

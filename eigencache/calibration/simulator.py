"""The simulator: a pipeline, run over and over from what it has already computed.

A plan is judged and fitted by the pipeline itself: nothing of its call, its guidance or its
scheduler is modelled here. A `Simulator` records full runs of some calls. It then runs the same
calls again with other full steps and weights, and hands the outputs that are known already to the
scheduler, so that the networks run only from where the sampling departs from an earlier one.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from eigencache.kernel import Kernel
from eigencache.plan import PlanError
from eigencache.runtime._driver import Driver, Policy, StepCall
from eigencache.runtime._hooks import forecast
from eigencache.runtime._taps import fingerprint, network_of

# How far outputs are moved to see how the scheduler answers. Small, so that no scheduler clips.
_PROBE = 1e-4


@dataclass
class Batch:
    """Calls of the pipeline that are made at once.

    Attributes:
        arguments: of the call, without the noise.
        seeds: of the noise of each image.
        encoded: what networks returned before the first step, by name and order of the call.
        shapes: of what denoisers are called with and return (`Driver.shapes`).
        samples: the latents before each step of the full run and after the last: `[N, ...]` each.
    """

    arguments: dict[str, Any]
    seeds: list[int]
    encoded: dict[tuple[str, int], Any] = field(default_factory=dict)
    shapes: dict[tuple[str, int], Any] = field(default_factory=dict)
    samples: list[torch.Tensor] = field(default_factory=list)


class Gap(NamedTuple):
    """What the gap behind a full step needs to be fitted, summed over images.

    With `f_a` the features that may be drawn on, `e` the latents of the full run at the end of the
    gap less those that the present weights lead to, and `c` by how much the latents there move per
    unit that is added to every output of the gap:

    Attributes:
        gram: float64 `[A, A]`, c^2 <f_a, f_b>.
        toward: float64 `[A]`, c <f_a, e>.
    """

    gram: np.ndarray
    toward: np.ndarray


Features = tuple[list[torch.Tensor], ...]  # of each full step so far, one tensor a batch


class _Stop(Exception):
    """Ends a call of the pipeline that has shown what was wanted."""


class Simulator:
    """Full runs of some calls of a pipeline, and what becomes of them with steps skipped.

    Args:
        pipe: a diffusers pipeline.
        calls: what each call gets beside `arguments`, such as `{"prompt": "a red apple"}`.
        seeds: of the noise of each call.
        arguments: what all calls get.
        batch: how many calls are made at once, where the pipeline can.

    Attributes:
        timesteps: float64 `[T]`, those that the scheduler's steps saw.
        step_sizes: float64 `[T]`, by how much the final latents move per unit of each step's
            output, if the other outputs stay as they are.
        grams: float64 `[T, T]` of each call: the mean products of its outputs at any two steps.
        passes: of each step, which networks were called how often.
        computed: how many images times steps the networks have computed.

    Raises:
        PlanError: the pipeline does not step its scheduler as diffusers' pipelines do.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Mapping[str, Any]], seeds: Sequence[int],
        arguments: Mapping[str, Any], batch: int = 16,
    ) -> None:  # fmt: skip
        self.pipe, self.computed = pipe, 0
        self.passes: list[tuple[tuple[str, int], ...]] = []
        self.grams: list[np.ndarray] = []
        size = batch if _can_batch(calls, arguments) else 1
        chunks = [range(i, min(i + size, len(calls))) for i in range(0, len(calls), size)]
        self.batches = [_batch(calls, seeds, arguments, chunk) for chunk in chunks]
        for batch_ in self.batches:
            record = _Record()
            self._call(batch_, record)
            if len(record.samples[0]) != len(batch_.seeds):
                raise PlanError(
                    f"{type(pipe).__name__} gave latents of {len(record.samples[0])} images for "
                    f"{len(batch_.seeds)} prompts: calibrate with batch=1"
                )
            batch_.samples, self.passes = record.samples, record.passes
            self.grams += record.grams()
            self.timesteps, self.step_sizes = np.array(record.timesteps), record.step_sizes
        self.eps = torch.finfo(self.batches[0].samples[0].dtype).eps

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.timesteps)

    @property
    def switches(self) -> tuple[int, ...]:
        """The steps at which the pipeline begins to call other networks, or others as often."""
        found = [self._of_denoisers(passes) for passes in self.passes]
        return tuple(s for s in range(2, len(found)) if found[s] != found[s - 1])

    @property
    def denoisers(self) -> set[str] | None:
        """The networks that are called after the first step; None while that is not known."""
        return {name for passes in self.passes[1:] for name, _ in passes} or None

    def _of_denoisers(self, passes: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        return tuple(part for part in passes if part[0] in (self.denoisers or ()))

    def kernel(self, source: Mapping[str, str] | None = None) -> Kernel:
        """Return the kernel of what the scheduler was given in the full runs.

        Args:
            source: where it comes from.
        """
        return Kernel(
            {"output": np.sum(self.grams, axis=0)}, len(self.grams), self.timesteps, "output",
            model=fingerprint(network_of(self.pipe)), source=source or {},
            step_sizes=self.step_sizes, switches=self.switches,
        )  # fmt: skip

    def decibels(self, final: Sequence[torch.Tensor]) -> float:
        """Return the mean over images of -10 log10 of the mean square error of final latents."""
        return float(-10 * np.log10(np.maximum(self.squares(final), 1e-30)).mean())

    def squares(self, final: Sequence[torch.Tensor]) -> np.ndarray:
        """Return the mean square error of each image's final latents, float64 `[N]`."""
        return np.square(self.errors(final)).mean(1)

    def errors(self, final: Sequence[torch.Tensor]) -> np.ndarray:
        """Return final latents less those of the full runs, float64 `[N, D]`."""
        return np.concatenate(
            [_rows(a) - _rows(b.samples[-1]) for a, b in zip(final, self.batches, strict=True)]
        )

    def run(
        self, full: np.ndarray, weights: np.ndarray, features: Features = (),
    ) -> tuple[list[torch.Tensor], Features]:  # fmt: skip
        """Sample by full steps and weights.

        Args:
            full: bool `[T]`.
            weights: float64 `[T, T]`, as of a plan.
            features: the outputs of the first full steps, which are not computed again.

        Returns:
            The final latents of each batch, and the features of all full steps.
        """
        follows = [_Follow(full, weights, [f[i] for f in features])
                   for i in range(len(self.batches))]  # fmt: skip
        for batch, follow in zip(self.batches, follows, strict=True):
            self._call(batch, follow)
        return [follow.final for follow in follows], _by_step([f.features for f in follows])

    def growth(
        self, full: np.ndarray, weights: np.ndarray, features: Features, step: int, share: float,
        final: Sequence[torch.Tensor],
    ) -> float:  # fmt: skip
        """Return by how much an error in the latents before a full step has grown at the end.

        Args:
            full, weights: as for `run`.
            features: the outputs of the full steps before `step`, two at least.
            step: a full step, before which the latents are moved along the last change of the
                features, as a forecast's error would move them.
            share: by how much, of their size.
            final: where `run` ends otherwise.
        """
        follows = [_Follow(full, weights, [f[i] for f in features], push=(step, share))
                   for i in range(len(self.batches))]  # fmt: skip
        for batch, follow in zip(self.batches, follows, strict=True):
            self._call(batch, follow)
        pairs = zip((f.final for f in follows), final, strict=True)
        moved = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        return float(np.sqrt(moved / sum(follow.pushed for follow in follows)))

    def gap(
        self, full: np.ndarray, weights: np.ndarray, features: Features, k: int,
        anchors: int | None,
    ) -> tuple[Features, Gap | None]:  # fmt: skip
        """Compute the full step at position k, and what fitting the gap behind it needs.

        Args:
            full: bool `[T]`.
            weights: float64 `[T, T]`; those of the gap are where the fit departs from.
            features: the outputs of the first full steps, up to position k at most.
            k: position of the full step whose gap is meant.
            anchors: how many of the latest features the fit may draw on; None for all.

        Returns:
            The features up to position k; and the gap, or None if no step is skipped there.
        """
        step = int(np.flatnonzero(full)[k])
        later = np.flatnonzero(full[step + 1 :])
        end = step + 1 + int(later[0]) if len(later) else len(full)
        made, gaps = [], []
        for i, batch in enumerate(self.batches):
            target = batch.samples[end]
            stop = (step, end, target, anchors)
            follow = _Follow(full, weights, [f[i] for f in features], stop=stop)
            self._call(batch, follow)
            made.append(follow.features)
            gaps += [follow.gap] if follow.gap else []
        summed = Gap(*map(sum, zip(*gaps, strict=True))) if gaps else None  # type: ignore[arg-type]
        return _by_step(made), summed

    def _call(self, batch: Batch, policy: "_Simulated") -> None:
        """Call the pipeline under a policy; what encodes prompts runs once for each batch."""
        noise: Any = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
        driver = Driver(self.pipe, policy)
        driver.encoded, driver.shapes = batch.encoded, batch.shapes
        driver.denoisers = self.denoisers
        policy.begins_alike = len(self.passes) > 1 and self._of_denoisers(
            self.passes[0]
        ) == self._of_denoisers(self.passes[1])
        driver.attach()
        try:
            with quiet(self.pipe):
                self.pipe(**batch.arguments, generator=noise if len(noise) > 1 else noise[0])
        except _Stop:
            pass
        finally:
            driver.detach()
        self.computed += policy.computed * len(batch.seeds)
        if policy.index == 0:
            raise PlanError(f"{type(self.pipe).__name__} never called its scheduler's step")


class _Simulated(Policy):
    """What the simulator's policies share: they count what was computed, and keep what is last."""

    begins_alike = False  # whether the first step calls the networks as the second does

    def __init__(self) -> None:
        self.computed = self.index = 0
        self.final: Any = None

    def given(self, call: StepCall) -> None:
        self.index = call.index + 1
        self.computed += call.computed

    def moved(self, call: StepCall, result: Any) -> Any:
        self.final = sample_of(result)
        return result

    def repeated(self, call: StepCall, result: Any) -> None:
        self.final = sample_of(result)

    def sibling(self) -> Policy:
        return Policy()


class _Record(_Simulated):
    """Keeps what the scheduler was given and gave back at every step of a full run."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []
        self.samples: list[torch.Tensor] = []
        self.timesteps: list[float] = []
        self.passes: list[tuple[tuple[str, int], ...]] = []
        self.step_sizes = np.empty(0)
        self.visited: np.ndarray | None = None
        self.sizes: np.ndarray | None = None

    def begin(self, timesteps: np.ndarray | None) -> None:
        self.visited = timesteps

    def given(self, call: StepCall) -> None:
        super().given(call)
        if call.index == 0:
            self.first, self.begun = Stepper(call), call
            self.samples.append(call.sample.clone())
        self.passes.append(call.passes)
        self.timesteps.append(float(torch.as_tensor(call.timestep).flatten()[0]))
        self.outputs.append(call.output.clone())

    def moved(self, call: StepCall, result: Any) -> Any:
        self.samples.append(sample_of(result).clone())
        return super().moved(call, result)

    def repeated(self, call: StepCall, result: Any) -> None:
        super().repeated(call, result)
        self.samples[-1] = self.final.clone()

    def grams(self) -> list[np.ndarray]:
        """Return the mean products of outputs at any two steps, float64 `[T, T]`, by image."""
        found = []
        for i in range(len(self.outputs[0])):
            rows = torch.stack([output[i].flatten() for output in self.outputs]).double()
            found.append((rows @ rows.T / rows.shape[1]).cpu().numpy())
        self.step_sizes = self.first.step_sizes(len(self.outputs))
        self.outputs.clear()
        return found


class _Follow(_Simulated):
    """Samples by full steps and weights; features that are known are not computed."""

    def __init__(
        self, full: np.ndarray, weights: np.ndarray, features: list[torch.Tensor],
        push: tuple[int, float] | None = None, stop: tuple | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.full, self.weights, self.features = full, weights, list(features)
        self.steps = len(full)
        self.known = set(np.flatnonzero(full)[: len(features)].tolist())
        self.position = {int(s): k for k, s in enumerate(np.flatnonzero(full))}
        self.push, self.stop, self.gap, self.pushed = push, stop, None, 0.0

    def computes(self, step: int) -> bool:
        if step == 0 and not self.begins_alike:
            return True  # something besides may happen there
        return bool(self.full[step]) and step not in self.known

    def given(self, call: StepCall) -> None:
        step = call.index
        super().given(call)
        if step in self.known:
            call.output = self.features[self.position[step]]
        elif self.full[step]:
            self.features.append(call.output.clone())
        else:
            if self.stop and step == self.stop[0] + 1:
                self.gap = self._fit(call)
                raise _Stop
            call.output = self._forecast(self.weights[step])

    def moved(self, call: StepCall, result: Any) -> Any:
        if self.push and call.index + 1 == self.push[0]:
            latents, change = sample_of(result), self.features[-1] - self.features[-2]
            sizes = [x.flatten(1).norm(dim=1) for x in (latents, change)]
            factor = self.push[1] * sizes[0] / sizes[1]
            before = latents.double()
            latents += (factor.reshape(-1, *[1] * (latents.ndim - 1)) * change).to(latents.dtype)
            self.pushed = float((latents.double() - before).square().sum())
        super().moved(call, result)
        if self.stop and call.index == self.stop[0] and self.stop[1] == call.index + 1:
            raise _Stop  # no gap behind this full step
        return result

    def _forecast(self, row: np.ndarray) -> torch.Tensor:
        terms = [(self.features[self.position[int(a)]], float(row[a])) for a in row.nonzero()[0]]
        return forecast(terms)

    def _fit(self, call: StepCall) -> Gap:
        step, end, target, anchors = self.stop
        stepper = Stepper(call)
        outputs = [self._forecast(self.weights[s]) for s in range(step + 1, end)]
        base = stepper.end(call.sample, outputs)
        latest = self.features[-1]
        # The scheduler is linear in the outputs, and treats all numbers of them alike.
        moved = stepper.end(call.sample, [output + latest for output in outputs]) - base
        flat = latest.double().flatten()
        scale = float(moved.double().flatten() @ flat / (flat @ flat))
        used = self.features[-anchors:] if anchors else self.features
        basis = scale * torch.stack([feature.double().flatten() for feature in used])
        error = (target.to(base.device).double() - base.double()).flatten()
        return Gap((basis @ basis.T).cpu().numpy(), (basis @ error).cpu().numpy())


class Stepper:
    """A scheduler as it is before a step, to see where outputs would lead.

    Args:
        call: of the step.
    """

    def __init__(self, call: StepCall) -> None:
        self.call, self.scheduler = call, copy.deepcopy(call.scheduler)
        self.extra = {k: v for k, v in call.again(None, None, None).items() if k == "generator"}
        generator = self.extra.get("generator")
        self.state = generator and map_generators(generator, lambda g: g.get_state())

    def end(self, sample: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the latents after as many steps as there are outputs."""
        scheduler, extra = copy.deepcopy(self.scheduler), dict(self.extra)
        if self.state is not None:
            extra["generator"] = map_generators(extra["generator"], _clone)
        first = self.call.position
        if first is None and len(outputs) > 1:
            raise PlanError(
                "the pipeline steps its scheduler at timesteps that are not the scheduler's own, "
                "so that what comes next cannot be told: use a method without a kernel"
            )
        for i, output in enumerate(outputs):
            timestep = self.call.timestep if i == 0 else scheduler.timesteps[first + i]
            result = type(scheduler).step(
                scheduler, **self.call.again(output, timestep, sample) | extra
            )
            sample = sample_of(result)
        return sample

    def step_sizes(self, count: int) -> np.ndarray:
        """Return by how much the final latents move per unit of each step's output, float64 `[T]`.

        All steps at once: the latents are `T` numbers, and number `s` sees the output of step `s`.

        Raises:
            PlanError: the scheduler does not answer with finite numbers.
        """
        generator = self.extra.get("generator")
        if isinstance(generator, list):
            self.extra["generator"], self.state = generator[0], self.state and self.state[0]
        device = self.call.sample.device
        nothing = torch.zeros(1, count, 1, 1, dtype=torch.float64, device=device)
        nudges = _PROBE * torch.eye(count, dtype=torch.float64, device=device)
        nudges = nudges.reshape(count, 1, count, 1, 1)
        moved = self.end(nothing, list(nudges)) - self.end(nothing, [nothing] * count)
        sizes = (moved.double().flatten() / _PROBE).cpu().numpy()
        if not np.isfinite(sizes).all():
            raise PlanError(
                f"{type(self.scheduler).__name__}: how outputs move the latents cannot be told"
            )
        return sizes


def map_generators(generator: Any, function: Any) -> Any:
    """Return `function` of a generator, or of each in a list."""
    return [function(g) for g in generator] if isinstance(generator, list) else function(generator)


def _clone(generator: torch.Generator) -> torch.Generator:
    clone = torch.Generator(generator.device)
    clone.set_state(generator.get_state())
    return clone


def sample_of(result: Any) -> torch.Tensor:
    """Return the latents in what a scheduler's `step` returned."""
    return result[0] if isinstance(result, tuple) else result.prev_sample


def _rows(latents: torch.Tensor) -> np.ndarray:
    return latents.double().flatten(1).cpu().numpy()


def _by_step(features: list[list[torch.Tensor]]) -> Features:
    """Return the features of each batch by full step."""
    return tuple(list(part) for part in zip(*features, strict=True))


def _batch(
    calls: Sequence[Mapping[str, Any]], seeds: Sequence[int], arguments: Mapping[str, Any],
    chunk: range,
) -> Batch:  # fmt: skip
    chosen = [calls[i] for i in chunk]
    own = dict(chosen[0]) if len(chunk) == 1 else {"prompt": [call["prompt"] for call in chosen]}
    return Batch({**arguments, **own}, [seeds[i] for i in chunk])


def _can_batch(calls: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> bool:
    """Return whether calls can be joined: they differ in a text alone, and share plain values."""
    texts = all(call.keys() == {"prompt"} and isinstance(call["prompt"], str) for call in calls)
    return texts and all(isinstance(v, int | float | str | bool | None) for v in arguments.values())


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Turn off the progress bar that the pipeline shows for every image, inside a `with` block."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


def takes(pipe: Any, name: str) -> bool:
    """Return whether a pipeline can be called with an argument of that name."""
    return name in inspect.signature(type(pipe).__call__).parameters


def latent_only(pipe: Any, arguments: Mapping[str, Any], seed: int) -> Any:
    """Call a pipeline, and let it leave out decoding if it can."""
    latent = {"output_type": "latent"} if takes(pipe, "output_type") else {}
    return pipe(**arguments, **latent, generator=torch.Generator("cpu").manual_seed(seed))

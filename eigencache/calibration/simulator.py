"""The simulator: a pipeline, run over and over from what it has already computed.

A plan is judged and fitted by the pipeline itself: nothing of its call, its guidance or its
scheduler is modelled here. A `Simulator` records full runs of some calls. It then runs the same
calls again with other full steps and weights, and hands the outputs that are known already to the
scheduler, so that the networks run only from where the sampling departs from an earlier one.
"""

import contextlib
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from eigencache._upstream import WeakTensorKeyDictionary
from eigencache.calibration._calls import Ending, Stop, quiet, sample_of, seeded
from eigencache.calibration.recording import (
    SPARSE,
    Recorder,
    Responses,
    Stepper,
    shares_of,
    sparse,
    weighed,
)
from eigencache.kernel import Kernel
from eigencache.plan import PlanError
from eigencache.runtime._driver import Driver, Policy, StepCall
from eigencache.runtime._hooks import forecast
from eigencache.runtime._policies import OutputPolicy
from eigencache.runtime._taps import fingerprint, map_tensors, network_of


@dataclass
class Batch:
    """Calls of the pipeline that are made at once.

    Attributes:
        arguments: of the call, without the noise.
        seeds: of the noise of each image.
        calls: the positions of the calls among all.
        encoded: what networks returned before the first step, by name and order of the call.
        shapes: of what denoisers are called with and return (`Driver.shapes`).
        record: of the full run, empty before it.
        shares: how much each image weighs (`Simulator.shares`).
        beside: of a pipeline that copies its scheduler, for latents of another kind (LTX 2 has one
            for sound), what the copies were given at the step of each feature.
    """

    arguments: dict[str, Any]
    seeds: list[int]
    calls: Sequence[int]
    encoded: dict[tuple[str, int], Any] = field(default_factory=dict)
    shapes: dict[tuple[str, int], Any] = field(default_factory=dict)
    record: "_Record" = field(default_factory=lambda: _Record())
    shares: np.ndarray = field(default_factory=lambda: np.empty(0))
    beside: MutableMapping[torch.Tensor, list[torch.Tensor]] = field(
        default_factory=WeakTensorKeyDictionary
    )

    @property
    def alike(self) -> bool:
        """Whether each image is as if its call were made alone.

        Nothing drew from torch's own generators, or there is but one call.
        """
        return len(self.calls) == 1 or not self.record.drew


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


class Simulator:
    """Full runs of some calls of a pipeline, and what becomes of them with steps skipped.

    Args:
        pipe: a diffusers pipeline.
        calls: what each call gets beside `arguments`, such as `{"prompt": "a red apple"}`.
        seeds: of the noise of each call.
        arguments: what all calls get.
        batch: how many calls are made at once, where the pipeline can: those that differ in texts
            alone. What is said of each call is in the order of the batches.
        sparse: the shares of full steps with which `responses` are measured, each by one more run;
            none if no kernel is made of these calls.

    Attributes:
        count: the number of calls.
        timesteps: float64 `[T]`, those that the scheduler's steps saw.
        step_sizes: float64 `[T]`, by how much the final latents move per unit of each step's
            output, if the other outputs stay as they are.
        responses: float64 `[3, T]`, as of a kernel.
        grams: float64 `[T, T]` of each call: the mean products of its outputs at any two steps.
        shares: float64 `[N]`, how much each call weighs in the kernel and in a fit: one over how
            far its outputs move from step to step, so that calls with strong guidance do not
            outweigh the others; 1 on average.
        computed: how many images times steps the networks have computed.

    Raises:
        PlanError: the pipeline does not step its scheduler as diffusers' pipelines do.
    """

    def __init__(
        self, pipe: Any, calls: Sequence[Mapping[str, Any]], seeds: Sequence[int],
        arguments: Mapping[str, Any], batch: int = 16, sparse: Sequence[float] = SPARSE,
    ) -> None:  # fmt: skip
        self.pipe, self.count, self.computed = pipe, len(calls), 0
        self.sparse = tuple(sparse)
        merged = [{**arguments, **call} for call in calls]
        chunks = _joined(merged, batch)
        try:
            self._record(merged, seeds, chunks)
        except Exception as error:
            most = max(map(len, chunks))
            if most == 1 or isinstance(error, PlanError):
                raise
            # What is wrong with the call itself, one prompt alone will show.
            warnings.warn(
                f"{type(pipe).__name__} does not take {most} prompts at once ({error}): it is "
                "called with one at a time",
                stacklevel=3,
            )
            self._record(merged, seeds, [[i] for i in range(len(calls))])
        self.shares = shares_of(self.grams, self.step_sizes)
        ends = np.cumsum([len(batch.record.samples[0]) for batch in self.batches])
        # Cosmos steps with each pass of its guidance, which are outputs of their own.
        passes = len(self.shares) // ends[-1]
        parts = np.split(self.shares, passes * ends[:-1])
        for made, shares in zip(self.batches, parts, strict=True):
            made.shares = shares.reshape(passes, -1).mean(0)
        self.eps = torch.finfo(self.batches[0].record.samples[0].dtype).eps

    def _record(
        self, calls: Sequence[dict[str, Any]], seeds: Sequence[int],
        chunks: Sequence[Sequence[int]],
    ) -> None:  # fmt: skip
        """Make the full runs, those of a chunk at once."""
        self.batches = [_batch(calls, seeds, chunk) for chunk in chunks]
        self.grams: list[np.ndarray] = []
        for batch in self.batches:
            record = batch.record
            self._call(batch, record)
            if len(batch.calls) > 1 and len(record.samples[0]) != len(batch.seeds):
                raise ValueError(f"its latents are of {len(record.samples[0])} images")
            timesteps = record.timesteps
            if batch is self.batches[0]:
                self.timesteps, self.step_sizes = timesteps, record.step_sizes()
                self.responses = np.zeros((3, len(timesteps)))
            elif not np.array_equal(timesteps, self.timesteps):
                raise PlanError(
                    f"calls 0 and {batch.calls[0]} sample at other timesteps ({_few(timesteps)} "
                    f"and {_few(self.timesteps)}): calibrate on calls of the same number of steps, "
                    "strength and size"
                )
            for share in self.sparse:
                plan = sparse(timesteps, share, record.switches)
                policy = _Respond(record.outputs, self.step_sizes, plan, torch.Tensor.detach)
                self._call(batch, policy)
                self.responses = self.responses + policy.seen
            self.grams += record.grams()

    def __len__(self) -> int:
        """The number of sampler steps, `T`."""
        return len(self.timesteps)

    @property
    def switches(self) -> tuple[int, ...]:
        """The steps at which networks are called otherwise than at the step before."""
        return tuple(sorted({step for batch in self.batches for step in batch.record.switches}))

    def kernel(self, source: Mapping[str, str] | None = None) -> Kernel:
        """Return the kernel of what the scheduler was given in the full runs.

        Args:
            source: where it comes from.

        Raises:
            ValueError: no responses were measured.
        """
        if not self.sparse:
            raise ValueError("no kernel without responses: state shares of full steps as `sparse`")
        passes = [batch.record.taken for batch in self.batches]
        runs = [
            Kernel(
                {"output": gram}, 1, self.timesteps, "output", source=source or {},
                model=fingerprint(network_of(self.pipe)), step_sizes=self.step_sizes,
                switches=self.switches, passes=(min(passes), max(passes)),
            )
            for gram in self.grams
        ]  # fmt: skip
        return replace(weighed(runs), responses=self.responses)

    def recorded(self) -> list[Ending | None]:
        """Return how the full run of each call ended, in the order of the calls.

        It is None where the call would have other noise if it were made alone.
        """
        found: dict[int, Ending | None] = dict.fromkeys(i for b in self.batches for i in b.calls)
        for batch in filter(lambda batch: batch.alike, self.batches):
            for k, call in enumerate(batch.calls):
                one = slice(k, k + 1) if len(batch.calls) > 1 else slice(None)
                ending = batch.record.ending
                found[call] = ending._replace(result=map_tensors(itemgetter(one), ending.result))
        return [found[call] for call in sorted(found)]

    def decibels(self, final: Sequence[torch.Tensor]) -> float:
        """Return the mean over images of -10 log10 of the mean square error of final latents."""
        squares = np.square(self.errors(final)).mean(1)
        return float(-10 * np.log10(np.maximum(squares, 1e-30)).mean())

    def errors(self, final: Sequence[torch.Tensor]) -> np.ndarray:
        """Return final latents less those of the full runs, float64 `[N, D]`."""
        ends = [batch.record.samples[-1] for batch in self.batches]
        return np.concatenate([_rows(a) - _rows(b) for a, b in zip(final, ends, strict=True)])

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
        follows = self._follow(full, weights, features)
        return [follow.final for follow in follows], _by_step([f.features for f in follows])

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
        follows = self._follow(full, weights, features, stop=(step, end, anchors))
        gaps = [follow.gap for follow in follows if follow.gap]
        summed = Gap(*map(sum, zip(*gaps, strict=True))) if gaps else None  # type: ignore[arg-type]
        return _by_step([follow.features for follow in follows]), summed

    def _follow(
        self, full: np.ndarray, weights: np.ndarray, features: Features, **options: Any
    ) -> list["_Follow"]:
        """Sample every batch by full steps and weights."""
        follows = []
        for i, batch in enumerate(self.batches):
            follows.append(_Follow(batch, full, weights, [f[i] for f in features], **options))
            self._call(batch, follows[-1])
        return follows

    def _call(self, batch: Batch, policy: "_Simulated") -> None:
        """Call the pipeline under a policy; what encodes prompts runs once for each batch."""
        noise: Any = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
        driver = Driver(self.pipe, policy)
        driver.encoded, driver.shapes = batch.encoded, batch.shapes
        driver.denoisers = batch.record.denoisers or None  # not known in the full run
        policy.begins_alike = len(batch.record.passes) > 1 and 1 not in batch.record.switches
        with quiet(self.pipe), driver, seeded(batch.seeds[0]) as drew, contextlib.suppress(Stop):
            self.pipe(**batch.arguments, generator=noise if len(noise) > 1 else noise[0])
            policy.drew = drew()
        policy.done()
        self.computed += policy.computed * len(batch.seeds)
        if policy.ending is None:
            raise PlanError(f"{type(self.pipe).__name__} never called its scheduler's step")


class _Simulated(Policy):
    """What the simulator's policies share: they count what was computed, and keep what is last."""

    begins_alike = False  # whether the first step calls the networks as the second does
    replays = True  # the full run, which is made first, computes every step anyway

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.computed = 0
        self.beside: list[_Copy] = []
        self.ending: Any = None
        self.drew = True  # whether anything drew from torch's own generators

    def given(self, call: StepCall) -> None:
        super().given(call)
        self.computed += call.computed

    def moved(self, call: StepCall, result: Any) -> Any:
        self.ending = Ending(call.index, call.repeats, result)
        return result

    @property
    def final(self) -> torch.Tensor:
        """The latents after the last step."""
        return sample_of(self.ending.result)

    def sibling(self) -> Policy:
        return _Copy(self)

    def given_to(self, step: int, output: Any, features: list[torch.Tensor]) -> Any:
        """Return what a copy of the scheduler is given at a step, from its features so far."""
        return output

    def known_beside(self, number: int) -> list[torch.Tensor]:
        """Return the known features of a copy of the scheduler."""
        return []

    def done(self) -> None:
        """The call of the pipeline has ended."""


class _Copy(Policy):
    """Of a copy of the scheduler: it is given what the plan says of its own outputs."""

    def __init__(self, original: _Simulated) -> None:
        self.original = original
        self.features: list[torch.Tensor] = []

    def given(self, call: StepCall) -> None:
        if call.index == 0:
            self.features = self.original.known_beside(len(self.original.beside))
            self.original.beside.append(self)
        call.output = self.original.given_to(call.index, call.output, self.features)

    def sibling(self) -> Policy:
        return _Copy(self.original)


class _Record(_Simulated, Recorder):
    """Keeps what the scheduler was given and gave back at every step of a full run."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []
        self.samples: list[torch.Tensor] = []

    def given(self, call: StepCall) -> None:
        super().given(call)
        if call.index == 0:
            self.samples.append(call.sample.clone())
        self.outputs.append(call.output.clone())

    def moved(self, call: StepCall, result: Any) -> Any:
        if call.repeats:
            self.samples.pop()
        self.samples.append(sample_of(result).clone())
        return super().moved(call, result)

    def grams(self) -> list[np.ndarray]:
        """Return the mean products of outputs at any two steps, float64 `[T, T]`, by image."""
        found = []
        for i in range(len(self.outputs[0])):
            rows = torch.stack([output[i].flatten() for output in self.outputs]).double()
            found.append((rows @ rows.T / rows.shape[1]).cpu().numpy())
        self.outputs.clear()
        return found


class _Respond(_Simulated, Responses):
    """Samples with few full steps, to see how outputs answer errors."""

    sibling = OutputPolicy.sibling


class _Follow(_Simulated):
    """Samples by full steps and weights; features that are known are not computed."""

    def __init__(
        self, batch: Batch, full: np.ndarray, weights: np.ndarray, features: list[torch.Tensor],
        stop: tuple[int, int, int | None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        copies = len(batch.record.beside)
        if copies:  # a sampling that was stopped may have missed its last step's
            whole = [len(batch.beside.get(f, ())) == copies for f in features]
            features = features[: whole.index(False)] if False in whole else features
        self.batch, self.full, self.weights, self.features = batch, full, weights, list(features)
        self.steps = len(full)
        self.known = set(np.flatnonzero(full)[: len(features)].tolist())
        self.position = {int(s): k for k, s in enumerate(np.flatnonzero(full))}
        self.stop = stop
        self.gap: Gap | None = None

    def computes(self, step: int) -> bool:
        if step == 0 and not self.begins_alike:
            return True  # something besides may happen there
        return bool(self.full[step]) and step not in self.known

    def given(self, call: StepCall) -> None:
        super().given(call)
        if self.stop and call.index == self.stop[0] + 1:
            self.gap = self._fit(call, *self.stop)
            raise Stop
        call.output = self.given_to(call.index, call.output, self.features)

    def given_to(self, step: int, output: Any, features: list[torch.Tensor]) -> Any:
        """Return what a scheduler is given at a step, and keep what is new among the features."""
        if not self.full[step]:
            return self._forecast(self.weights[step], features)
        if step not in self.known:
            features.append(output.clone())
        return features[self.position[step]].clone()  # schedulers may write into it

    def known_beside(self, number: int) -> list[torch.Tensor]:
        return [self.batch.beside[f][number] for f in self.features[: len(self.known)]]

    def done(self) -> None:
        for k, feature in enumerate(self.features):
            found = [other.features[k] for other in self.beside if k < len(other.features)]
            if found:
                self.batch.beside[feature] = found

    def moved(self, call: StepCall, result: Any) -> Any:
        super().moved(call, result)
        if self.stop and call.index == self.stop[0] and self.stop[1] == call.index + 1:
            raise Stop  # no gap behind this full step
        return result

    def _forecast(self, row: np.ndarray, features: list[torch.Tensor]) -> torch.Tensor:
        anchors = [int(a) for a in row.nonzero()[0]]
        return forecast([(features[self.position[a]], float(row[a])) for a in anchors])

    def _fit(self, call: StepCall, step: int, end: int, anchors: int | None) -> Gap:
        stepper = Stepper(call, self.batch.record.moments)
        rows = self.weights[step + 1 : end]
        outputs = [self._forecast(row, self.features) for row in rows]
        base = stepper.end(call.sample, outputs)
        latest = self.features[-1]
        # The scheduler is linear in the outputs, and treats all numbers of them alike.
        moved = stepper.end(call.sample, [output + latest for output in outputs]) - base
        flat = latest.double().flatten()
        scale = float(moved.double().flatten() @ flat / (flat @ flat))
        used = self.features[-anchors:] if anchors else self.features
        root = torch.from_numpy(np.sqrt(self.batch.shares)).to(base.device)[:, None]
        basis = scale * torch.stack([(root * f.double().flatten(1)).flatten() for f in used])
        error = (self.batch.record.samples[end].to(base.device).double() - base.double()).flatten(1)
        error = (root * error).flatten()
        return Gap((basis @ basis.T).cpu().numpy(), (basis @ error).cpu().numpy())


def _few(timesteps: np.ndarray) -> str:
    return f"{len(timesteps)} steps from {timesteps[0]:g} to {timesteps[-1]:g}"


def _rows(latents: torch.Tensor) -> np.ndarray:
    return latents.double().flatten(1).cpu().numpy()


def _by_step(features: list[list[torch.Tensor]]) -> Features:
    """Return the features of each batch by full step."""
    return tuple(list(part) for part in zip(*features, strict=True))


def _batch(calls: Sequence[dict[str, Any]], seeds: Sequence[int], chunk: Sequence[int]) -> Batch:
    own = calls[chunk[0]]
    if len(chunk) > 1:  # pipelines want as many negative prompts as prompts
        own = {k: [calls[i][k] for i in chunk] if _is_prompt(k, v) else v for k, v in own.items()}
    return Batch(own, [seeds[i] for i in chunk], chunk)


def _is_prompt(name: str, value: Any) -> bool:
    return "prompt" in name and isinstance(value, str)


def _joined(calls: Sequence[Mapping[str, Any]], size: int) -> list[list[int]]:
    """Return which calls can be made at once: of a prompt each, and different in texts alone."""
    groups: dict[Any, list[int]] = {}
    for i, call in enumerate(calls):
        plain = isinstance(call.get("prompt"), str) and all(
            isinstance(v, int | float | str | bool | None) for v in call.values()
        )
        rest = {k: None if _is_prompt(k, v) else v for k, v in call.items()}
        key = tuple(sorted(rest.items(), key=lambda item: item[0])) if plain else i
        groups.setdefault(key, []).append(i)
    return [chunk[i : i + size] for chunk in groups.values() for i in range(0, len(chunk), size)]

"""The driver: it knows at which step a pipeline is, and decides what runs there.

Every diffusers pipeline calls `scheduler.step(model_output, timestep, sample)` once per step. That
call says which step it is, holds the output with guidance applied, however the pipeline made it,
and returns the latents. So the driver needs nothing else of a pipeline. While it is attached,

- `scheduler.set_timesteps` begins an image, and `scheduler.step` ends a step;
- at a step that the policy computes, the pipeline runs untouched;
- at any other step every denoiser (transformer, second expert, U-Net, ControlNet) is stood in for:
  it does not run, and returns what it last returned at that pass. The scheduler is given what the
  policy says, whatever that is, but some guiders keep a mean of all outputs.

The scheduler is attached by bound methods on a copy of it, which is the pipeline's own until
`detach`: another pipeline that shares the original does not notice. A pipeline that copies its
scheduler again (LTX 2 has one for video and one for audio) gets a copy of the attachment, with
anchors of its own.
"""

import copy
import functools
import inspect
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel

from eigencache._upstream import (
    CACHES,
    COMPILED,
    WRAPPED,
    cache_hook_in,
    pytree,
    steps_announced,
)
from eigencache.plan import PlanError, PlanWarning
from eigencache.runtime._taps import DENOISERS, map_tensors, tensors
from eigencache.runtime.stats import CacheStats

ATTACHED, DRIVER = "_eigencache", "_eigencache_driver"  # of a scheduler, and of a pipeline
# Where a switch may be met on a module: offloading puts what it wraps in the second.
_PLACES = ("forward", WRAPPED, COMPILED)


Pass = tuple[str, int, tuple]


@dataclass
class StepCall:
    """One call of `scheduler.step`.

    Attributes:
        index: of the step, from 0.
        scheduler: whose method is called.
        timestep: as the pipeline passes it.
        output: the model output that the scheduler will be given; a policy may replace it.
        sample: the latents before the step.
        computed: whether the denoisers ran at this step.
        passes: the calls of networks at this step: of each its name, its number among the calls of
            that network, and what tells one kind of call from another.
        repeats: whether the pipeline takes the step once more, by what came of the first time, as
            Cosmos does: first for the clean sample, then with that, guided.
    """

    index: int
    scheduler: Any
    bound: inspect.BoundArguments
    computed: bool = True
    passes: tuple[Pass, ...] = ()
    repeats: bool = False

    @property
    def _names(self) -> list[str]:
        """What the scheduler calls the output, the timestep and the sample."""
        names = list(self.bound.signature.parameters)[1:]  # the first is `self`
        usual = ("model_output", "timestep", "sample")
        return [name if name in names else names[i] for i, name in enumerate(usual)]

    @property
    def output(self) -> Any:
        return self.bound.arguments[self._names[0]]

    @output.setter
    def output(self, value: Any) -> None:
        self.bound.arguments[self._names[0]] = value

    @property
    def timestep(self) -> Any:
        return self.bound.arguments[self._names[1]]

    @property
    def sample(self) -> torch.Tensor:
        return self.bound.arguments[self._names[2]]

    def again(self, output: Any, timestep: Any, sample: Any) -> dict[str, Any]:
        """Return the keywords of a call like this one with another output, timestep and sample."""
        changed = dict(zip(self._names, (output, timestep, sample), strict=True))
        arguments = dict(list(self.bound.arguments.items())[1:])
        for name, parameter in self.bound.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name, {})
        return arguments | changed


class Policy:
    """What a driver asks at each step of an image. This one lets every step run.

    Attributes:
        steps: how many steps an image has; None if it cannot be told.
        skips: whether it skips steps, so that the driver must see networks that run.
        replays: whether it knows from an earlier run what the steps call.
    """

    steps: int | None = None
    skips = False
    replays = False

    def is_full(self, step: int, computed: bool) -> bool:
        """Return whether a step counts as full; `computed` is whether the denoisers ran."""
        return computed

    def begin(self, timesteps: np.ndarray | None, pipe: Any) -> None:
        """The scheduler is about to be stepped for the first time in an image.

        Args:
            timesteps: float64 `[T]`, those that the scheduler will be stepped through; None if
                they cannot be told beforehand.
            pipe: the pipeline; None for the copy of a scheduler.

        Raises:
            PlanError: the policy is not for these timesteps.
        """

    def computes(self, step: int) -> bool:
        """Return whether the denoisers run at a step."""
        return True

    def running(self, step: int, denoiser: str, call: int) -> AbstractContextManager[list[Any]]:
        """Return what a denoiser runs in, for the `call`-th time in this step.

        To the list that it gives the block appends what the denoiser returns.
        """
        return nullcontext([])

    def given(self, call: StepCall) -> None:
        """The scheduler is about to step; set `call.output` to what it shall be given."""

    def moved(self, call: StepCall, result: Any) -> Any:
        """Return what `scheduler.step` returns to the pipeline, given what it returned."""
        return result

    def end(self) -> None:
        """The image is finished or abandoned: forget everything of it."""

    def held(self) -> Any:
        """Return what is kept between steps: tensors, in whatever structure."""
        return ()

    def sibling(self) -> "Policy":
        """Return the policy of a copy of the scheduler, which steps other latents."""
        return copy.copy(self)


class Attachment:
    """What a scheduler carries while a driver is attached: at which step it is."""

    def __init__(
        self, policy: Policy, driver: "Driver | None", leader: "Attachment | None" = None
    ) -> None:
        self.policy, self.driver, self.leader = policy, driver, leader
        self.ran: list[bool] = []  # of each step so far, whether the denoisers ran
        self.last: Any = None  # the timestep of the last call
        self.how: tuple = ()  # that call was made, by `_how`
        self.index = -1  # no image is under way
        self.timesteps = np.empty(0)  # all of the scheduler's

    def __deepcopy__(self, memo: dict) -> "Attachment | None":
        """A copied scheduler goes through the same steps with other latents.

        Not so that of a copied pipeline, which has no driver.
        """
        if self.driver and id(self.driver.pipe) in memo:
            return None
        return Attachment(self.policy.sibling(), None, self.leader or self)

    def is_elsewhere(self) -> bool:
        """Return whether the scheduler, or this copy of it, is used outside the driven pipeline."""
        driver = (self.leader or self).driver
        if driver is None or not driver.attached:
            return True
        caller = calling()[0]
        by_hand = caller is None and self.leader is None  # a loop of the user's own
        return caller is not driver.pipe and not by_hand

    def set_timesteps(self, scheduler: Any, original: Callable, args: tuple, kwargs: dict) -> Any:
        if self.driver:
            self.driver.check_free()
            self.driver.check_networks()
        result = original(*args, **kwargs)
        self.policy.end()
        self.index, self.last = 0, None
        self.ran.clear()
        self.timesteps = scheduler.timesteps.detach().double().cpu().numpy()
        if self.driver:
            self.driver.begin()
        return result

    def step(self, scheduler: Any, original: Callable, args: tuple, kwargs: dict) -> Any:
        bound = signature_of(type(scheduler).step).bind(scheduler, *args, **kwargs)
        driver, ran = self.driver, (self.leader or self).ran
        call = StepCall(self.index, scheduler, bound)
        if driver:
            driver.check_owner()
            if not driver.passes:
                if self._repeats(call):
                    call.index, call.repeats = len(ran) - 1, True
                    return self.policy.moved(call, original(*args, **kwargs))
                if self.index == 0 and self.policy.skips:
                    self.finish()
                    raise PlanError(
                        f"{type(driver.pipe).__name__} took its first step, and called none of the "
                        f"networks that the cache can see ({', '.join(driver.seen)}), so that "
                        "nothing would be skipped: register the network that denoises as a "
                        "component of the pipeline, a torch.nn.Module that is called as such"
                    )
            call.passes = tuple(sorted(driver.passes))
            ran.append(driver.computed)
        if 0 <= self.index < len(ran):
            call.computed = ran[self.index]
        self.last, self.how = call.timestep, _how(call)
        if self.index < 0:
            raise PlanError(
                "the sampler takes more steps than the plan has, or was under way before the cache "
                "was enabled: make a plan for the timesteps that the pipeline really visits"
            )
        try:
            if self.index == 0:
                self._begin(call)
            self.policy.given(call)
            result = self.policy.moved(call, original(*bound.args[1:], **bound.kwargs))
        except BaseException:
            self.finish()
            raise
        self.index += 1
        if self.index == self.policy.steps:
            self.finish()
        if driver:
            driver.stepped()
            for follow in driver.followers:
                follow(result)
        return result

    def _begin(self, call: StepCall) -> None:
        """Tell the policy that an image begins."""
        visited, wanted = self._visited(call), self.policy.steps
        if visited is None and wanted is not None and wanted > len(self.timesteps):
            raise PlanError(
                f"the plan was made for {wanted} steps, the sampler takes {len(self.timesteps)}: "
                "make a plan for as many"
            )
        self.policy.begin(visited, self.driver and self.driver.pipe)

    def _repeats(self, call: StepCall) -> bool:
        """Return whether a call is at the timestep of the last one.

        Raises:
            PlanError: it is a call as the last one, of other latents.
        """
        if self.last is None:
            return False
        both = isinstance(self.last, torch.Tensor) and isinstance(call.timestep, torch.Tensor)
        same = both and self.last.data_ptr() == call.timestep.data_ptr()
        if not same and call.timestep is not self.last:
            return False
        place, names = _how(call)
        if place != self.how[0] and names == self.how[1]:
            self.finish()
            raise PlanError(
                "the pipeline calls its networks once a step and then scheduler.step once for each "
                "of several latents: the cache would take only the first for a step; call "
                "scheduler.step once, with all latents in one tensor"
            )
        return True

    def finish(self) -> None:
        """The image is over."""
        self.index = -1
        self.policy.end()
        if self.driver:
            self.driver.frame = None

    def _visited(self, call: StepCall) -> np.ndarray | None:
        """Return the timesteps from the present one to the last that the pipeline will visit."""
        start = self._position(call)
        count = steps_announced(self.driver.pipe) if self.driver else None
        return None if start is None else self.timesteps[start:][:count]

    def _position(self, call: StepCall) -> int | None:
        """Return where among the scheduler's timesteps a call's is; None if it is none of them.

        Nothing waits for the device: pipelines pass a view of the scheduler's own timesteps, and
        where it points says which it is. Other tensors on a device are read at step 0 alone.
        """
        timestep, own = call.timestep, call.scheduler.timesteps
        if isinstance(timestep, torch.Tensor):
            same = timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
            if same and timestep.dtype == own.dtype and timestep.numel() == 1:
                offset = timestep.storage_offset() - own.storage_offset()
                return offset // max(own.stride(0), 1)
            timestep = timestep.flatten()[0]
        found = np.flatnonzero(self.timesteps == float(timestep))
        return int(found[0]) if len(found) else None


signature_of = functools.cache(inspect.signature)


def _how(call: StepCall) -> tuple:
    """Return where the latents of a call are in memory, and the names of its arguments."""
    sample = call.sample
    place = sample.data_ptr() if isinstance(sample, torch.Tensor) else id(sample)
    return place, frozenset(call.bound.arguments)


def _method(scheduler: Any, name: str) -> types.MethodType:
    """Return a bound method that stands before the scheduler's own, with its signature."""
    original = getattr(type(scheduler), name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        attachment = self.__dict__.get(ATTACHED)
        if attachment is None or attachment.is_elsewhere():
            return original(self, *args, **kwargs)
        return getattr(attachment, name)(self, functools.partial(original, self), args, kwargs)

    return types.MethodType(method, scheduler)


class Driver:
    """Drives one pipeline by a policy while it is attached, as inside a `with` block of it.

    Args:
        pipe: a diffusers pipeline with a scheduler.
        policy: what to ask at each step.
        stats: counts and times steps.

    Attributes:
        encoded: where the simulator keeps what networks returned before the denoising began, by
            name and order of the call, to hand it out again; None runs them every time.
        denoisers: the names of those that denoise; None while that is not known.
        followers: called with what `scheduler.step` returned, after every step.
        shapes: what each denoiser is called with and last returned, by name and order in a step.
        kinds: the sets of passes that computed steps had.

    Raises:
        ValueError: the pipeline has no scheduler or no denoiser, or another cache is enabled.
    """

    def __init__(self, pipe: Any, policy: Policy, stats: CacheStats | None = None) -> None:
        self.pipe, self.policy, self.stats = pipe, policy, stats
        self.thread: int | None = None
        self.frame: types.FrameType | None = None  # of the pipeline's call that makes the image
        self.encoded: dict[tuple[str, int], Any] | None = None
        self.denoisers: set[str] | None = None
        self.followers: list[Callable[[Any], None]] = []
        self.passes: list[Pass] = []  # of the present step
        self.shapes: dict[tuple[str, int], tuple[tuple, Any]] = {}
        self.kinds: set[frozenset[Pass]] = set()
        self.computed = True
        self.early: dict[str, int] = {}  # how often each network ran before the first image
        self._original: Any = None
        self._switches: dict[str, _Switch] = {}

    def __deepcopy__(self, memo: dict) -> None:
        """A copied pipeline has no driver."""

    @property
    def attached(self) -> bool:
        """Whether `attach` was called and `detach` was not."""
        return self._original is not None

    @property
    def step(self) -> int:
        """The step that the pipeline is at; -1 between images."""
        return self.attachment.index

    @property
    def seen(self) -> list[str]:
        """The names of the networks whose calls the driver sees and may skip."""
        return sorted(self._switches.keys() - self.aside)

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    def attach(self) -> None:
        """Put the driver between the pipeline and its scheduler and denoisers."""
        scheduler: Any = getattr(self.pipe, "scheduler", None)
        if not (hasattr(scheduler, "step") and hasattr(scheduler, "set_timesteps")):
            raise ValueError(
                f"{type(self.pipe).__name__} has no scheduler with set_timesteps and step"
            )
        other = getattr(scheduler.__dict__.get(ATTACHED), "driver", None)
        if other and other.pipe is self.pipe:
            raise ValueError("a cache is already enabled on this pipeline: disable it first")
        for name, part in vars(self.pipe).items():
            if isinstance(part, DiffusionPipeline) and vars(part).get("scheduler") is scheduler:
                raise ValueError(
                    f"{type(self.pipe).__name__} samples by its {name}, a pipeline of its own: "
                    f"enable the cache on pipe.{name}, and call the whole as before"
                )
        modules = denoisers(self.pipe)
        if not modules:
            raise ValueError(f"{type(self.pipe).__name__} has no network loaded")
        for name, module in modules.items():
            check_no_cache(name, module, inside=True)
        self.aside = {name for name, module in modules.items() if not may_denoise(module)}
        self.attachment, self.begun = Attachment(self.policy, self), False
        self.before: dict[str, int] = {}
        self._original, attached = scheduler, copy.deepcopy(scheduler)
        attached.__dict__[ATTACHED] = self.attachment
        attached.step = _method(attached, "step")
        attached.set_timesteps = _method(attached, "set_timesteps")
        self.scheduler = self.pipe.scheduler = attached
        self._switches = {name: _Switch.of(module) for name, module in modules.items()}
        for name, switch in self._switches.items():
            switch.drivers[self] = name
            switch.place()

    def detach(self) -> None:
        """Undo `attach`, and forget all; do nothing if not attached."""
        if not self.attached:
            return
        self.attachment.finish()
        own = {ATTACHED, "step", "set_timesteps"}
        kept = {k: v for k, v in self.scheduler.__dict__.items() if k not in own}
        if self.pipe.scheduler is self.scheduler:
            self._original.__dict__.update(kept)  # where the last image has left it
            self.pipe.scheduler = self._original
        for name in own:  # a pipeline made from this one may have it
            self.scheduler.__dict__.pop(name, None)
        self._original = None
        for switch in self._switches.values():
            switch.leave(self)
        self._switches = {}

    def begin(self) -> None:
        """An image begins, in the present thread."""
        self.thread, self.begun = threading.get_ident(), True
        self.frame = calling()[1]
        self.passes.clear()
        self.computed = self.policy.computes(0)
        if self.computed:  # an image on its own; what a simulator replays is known from before
            self.shapes.clear()
            self.kinds.clear()
        for switch in self._switches.values():
            switch.place()  # offloading takes it away with every image

    def stepped(self) -> None:
        """A step has ended."""
        if self.stats:
            self.stats.end()
        kind, changed = frozenset(self.passes), False
        if self.computed:
            self.kinds.add(kind)
        else:
            # Whether a second pass comes is not known when the first is skipped: a step late.
            changed = bool(kind) and kind not in self.kinds and not self.policy.replays
        self.passes.clear()
        self.computed = self.step < 0 or changed or self.policy.computes(self.step)

    def abandon(self, frame: types.FrameType | None) -> None:
        """Forget an image that its pipeline has left half way, as by an exception or an interrupt.

        Args:
            frame: of the call of the pipeline that is under way.
        """
        if self.step < 0 or self.frame is None or frame is self.frame:
            return
        if self.thread == threading.get_ident() or _is_over(self.frame):
            self.attachment.finish()
            self.computed = True

    def check_networks(self) -> None:
        """Raise a PlanError if the pipeline has other networks than when it was attached to.

        And a ValueError if another cache was enabled on one of them.
        """
        called = {name for name, _ in self.shapes}
        for name, module in denoisers(self.pipe).items():
            if name not in self.aside:
                check_no_cache(name, module, inside=True)
            switch = self._switches.get(name)
            missed = switch is None or switch.module is not module
            if missed and (name in called or name.startswith(DENOISERS)):
                raise PlanError(
                    f"the pipeline's {name} was replaced while the cache is enabled: disable the "
                    "cache first and enable it again after that"
                )

    def check_free(self) -> None:
        """Raise a PlanError if another thread makes an image."""
        if self.step >= 0 and self.frame is not None and not _is_over(self.frame):
            self.check_owner()

    def check_owner(self) -> None:
        """Raise a PlanError if another thread has begun the image."""
        if self.thread is not None and self.thread != threading.get_ident():
            raise PlanError(
                "another thread samples with this pipeline: a cached pipeline makes one image at "
                "a time; give each thread a pipeline of its own, or a lock"
            )

    def call(self, name: str, module: nn.Module, run: Callable, args: tuple, kwargs: dict) -> Any:
        """Return what a denoiser returns to the pipeline."""
        if self.pipe.scheduler is not self.scheduler:
            raise PlanError(
                "the pipeline's scheduler was replaced while the cache is enabled: disable the "
                "cache first, then set the scheduler and make a plan for it"
            )
        encodes = self.step == 0 and self.denoisers is not None and name not in self.denoisers
        if encodes or not self.begun:
            return self._encode(name, run, args, kwargs)
        if self.step < 0 or name in self.aside:
            return run(*args, **kwargs)
        self.check_owner()
        check_no_cache(name, module)
        index, shapes = sum(other == name for other, *_ in self.passes), shape_of(args, kwargs)
        self.passes.append((name, index, shapes))
        known = self.shapes.get((name, index))
        if len(self.passes) == 1:
            # A network or a batch that no earlier step had: only a full step can tell its output.
            self.computed |= known is None or known[0] != shapes
            if self.stats:
                full = self.policy.is_full(self.step, self.computed)
                self.stats.begin(full, _device(args, kwargs), self.step == 0)
        if not self.computed:
            known = known or self._alike(name, shapes)
            if known is not None:
                return map_tensors(torch.clone, known[1])
        try:
            with self.policy.running(self.step, name, index) as returned:
                output = run(*args, **kwargs)
                returned.append(output)
        except BaseException:
            self.attachment.finish()
            raise
        # What a ControlNet returns is large, and goes to a network that is skipped too.
        keep = _empty if name.startswith("controlnet") else _kept
        self.shapes[name, index] = shapes, pytree.tree_map(keep, output)
        return output

    def _encode(self, name: str, run: Callable, args: tuple, kwargs: dict) -> Any:
        """Return what a network returns before the denoising begins; the same at every image."""
        if not self.begun and name.startswith(DENOISERS) and name not in self.aside:
            self.early[name] = self.early.get(name, 0) + 1
            if self.early[name] == 2:
                warnings.warn(
                    f"{name} is called again and again, and nothing has set the timesteps of "
                    f"{type(self.pipe).__name__}.scheduler: so far the cache does nothing. It is "
                    "on the scheduler that the pipeline has now; a loop must take it from there "
                    "inside the block, and not make or remember one of its own",
                    PlanWarning, stacklevel=4,
                )  # fmt: skip
        if self.encoded is None:
            return run(*args, **kwargs)
        key = name, self.before.get(name, 0)
        self.before[name] = key[1] + 1
        if key not in self.encoded:
            self.encoded[key] = run(*args, **kwargs)
        return map_tensors(torch.clone, self.encoded[key])

    def _alike(self, name: str, shapes: tuple) -> tuple[tuple, Any] | None:
        """Return what is known of a call of a denoiser with inputs of these shapes."""
        alike = (v for (other, _), v in self.shapes.items() if (other, v[0]) == (name, shapes))
        return next(alike, None)


@dataclass
class _Level:
    """What a switch has put in one place of its module.

    Attributes:
        name: of the place, one of `_PLACES`.
        found: what was there of the module's own; None if it was the class's.
        run: what it calls.
        method: what is there now.
    """

    name: str
    found: Any
    run: Callable
    method: Any = None


class _Switch:
    """Stands before the calls of one network, and hands them to the drivers attached to it.

    It is around what torch.compile made of the module, so that nothing of it is compiled, and
    around the hooks of model offloading, so that what does not run is not moved either. Others may
    wrap the module while the cache is on: offloading does so at every image, hooks of diffusers at
    any time. The switch then goes around them once more, and has several levels. The first that a
    call meets asks the drivers; those below it only hand the call on.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.drivers, self.inside = module, dict[Driver, str](), set[int]()
        self.levels: list[_Level] = []  # the outermost last

    def __deepcopy__(self, memo: dict) -> None:
        """A copied module is nobody's."""

    @classmethod
    def of(cls, module: nn.Module) -> "_Switch":
        """Return the switch of a module, made now if it has none."""
        found = module.__dict__.get(ATTACHED)
        if found is not None:
            return found
        for name in _PLACES:  # on the copy of a module that had a switch
            function = getattr(module.__dict__.get(name), "__func__", None)
            if hasattr(function, ATTACHED):
                del module.__dict__[name]
        switch = module.__dict__[ATTACHED] = cls(module)
        return switch

    def place(self) -> None:
        """Put the switch in front of the module, unless it is there."""
        own = self.module.__dict__
        name = "forward" if getattr(self.module, COMPILED) is None else COMPILED
        if self.levels and self.levels[-1].name != name:  # compiled meanwhile, or no longer
            self._remove()
        for place in (name, WRAPPED):
            at = self._at(own.get(place))
            if at is not None:
                del self.levels[at + 1 :]  # what was between them and this one was taken away
                if place == name:
                    return
                break
        else:
            if WRAPPED in own:  # offloading is the outermost, and not around the switch
                self.levels.clear()
        level = _Level(name, own.get(name), getattr(self.module, name))
        level.method = own[name] = types.MethodType(self._method(level), self.module)
        self.levels.append(level)

    def _method(self, level: _Level) -> Callable:
        """Return what stands in a place, to be bound to the module."""

        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not self.module:  # a deep copy
                return type(module).forward(module, *args, **kwargs)
            return self.call(level.run, args, kwargs)

        method.__dict__[ATTACHED] = True
        method.__dict__["__wrapped__"] = level.run  # for those who ask for the signature
        return method

    def _at(self, found: Any) -> int | None:
        """Return which level something is; None if none."""
        return next((i for i, level in enumerate(self.levels) if level.method is found), None)

    def call(self, run: Callable, args: tuple, kwargs: dict) -> Any:
        """Call the module by `run`, or let the driver of the pipeline that calls it decide."""
        thread = threading.get_ident()
        if thread in self.inside:
            return run(*args, **kwargs)
        self.inside.add(thread)
        try:
            caller, frame = calling()
            for driver, name in self.drivers.items():
                if caller is None or driver.pipe is caller:
                    driver.abandon(frame)
                    return driver.call(name, self.module, run, args, kwargs)
            return run(*args, **kwargs)
        finally:
            self.inside.discard(thread)

    def leave(self, driver: "Driver") -> None:
        """Forget a driver; take the switch away if it was the last."""
        self.drivers.pop(driver, None)
        if not self.drivers:
            del self.module.__dict__[ATTACHED]
            self._remove()

    def _remove(self) -> None:
        """Take every level out of its place; those that others hold only hand on from now on."""
        own = self.module.__dict__
        for name in _PLACES:
            at = self._at(own.get(name))
            if at is None:
                continue
            level = self.levels[at]
            if name == WRAPPED:
                own[name] = level.run
            elif level.found is None:
                del own[name]
            else:
                own[name] = level.found
        self.levels.clear()


def calling() -> tuple[DiffusionPipeline | None, types.FrameType | None]:
    """Return the pipeline that is being called, the innermost one, and the frame of its call.

    Pipelines share networks (`from_pipe`), and only one of them may be cached. Another one may even
    be called by a callback of the cached one, so that nothing but the stack tells whose call this
    is. Reading it takes six microseconds.

    Returns:
        None twice if no pipeline is being called.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            owner = frame.f_locals.get("self")
            if isinstance(owner, DiffusionPipeline):
                return owner, frame
        frame = frame.f_back
    return None, None


def _is_over(frame: types.FrameType) -> bool:
    """Return whether a call has returned or raised; its local variables are dropped if so."""
    try:
        frame.clear()
    except RuntimeError:  # it is executing
        return False
    return True


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Return the networks of a pipeline that may be called at every step, by their names.

    Text encoders and the like are among them: they are called before the first step, where
    everything runs.
    """
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def may_denoise(module: nn.Module) -> bool:
    """Return whether a network may be one that denoises; a callback may call others at any step."""
    is_autoencoder = hasattr(module, "encode") and hasattr(module, "decode")
    return not is_autoencoder and not isinstance(module, PreTrainedModel)


def check_no_cache(name: str, module: nn.Module, inside: bool = False) -> None:
    """Raise a ValueError if a cache of diffusers or of cache-dit is enabled on a module.

    Args:
        name: of the module.
        module: a network.
        inside: whether to look for hooks of diffusers' caches too, which takes a millisecond: its
            functions, such as `apply_taylorseer_cache`, leave no other mark.
    """
    for mark, (whose, how) in CACHES.items():
        if getattr(module, mark, False):
            raise ValueError(
                f"a cache of {whose} is enabled on {name}: call {how} first; two caches cannot be "
                "stacked"
            )
    found = cache_hook_in(module) if inside else None
    if found:
        where = ".".join(filter(None, (name, found[0])))
        raise ValueError(
            f"a cache of diffusers is on {where} (its hook {found[1]}): remove it there, or load "
            "the pipeline anew; two caches cannot be stacked"
        )


def shape_of(args: tuple, kwargs: dict) -> tuple:
    """Return what tells one kind of call from another: shapes of tensors, names, texts, flags."""
    named = ((name, _told(value, "scale" in name)) for name, value in kwargs.items())
    return (*map(_told, args), *named)


def _told(value: Any, scale: bool = False) -> Any:
    """Return what `shape_of` tells of one argument; it runs at every step, and so is plain.

    Of a scale it is whether it is 0: a ControlNet that stops is called on, with that.
    """
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, list | tuple):
        return tuple(_told(part, scale) for part in value)
    if scale and isinstance(value, int | float):
        return bool(value)
    if isinstance(value, dict):
        return tuple((name, _told(part)) for name, part in value.items())
    return ...


def _empty(leaf: Any) -> Any:
    """Return zeros of a tensor's shape that take no memory; None for what is no tensor."""
    return leaf.new_zeros(()).expand(leaf.shape) if isinstance(leaf, torch.Tensor) else None


def _kept(leaf: Any) -> Any:
    """Return a copy of a tensor, which pipelines and CUDA graphs write into; None for the rest."""
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else None


def _device(args: tuple, kwargs: dict) -> torch.device:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device
    found = tensors([args, kwargs])
    return found[0].device if found else torch.device("cpu")

"""The driver: it knows at which step a pipeline is, and decides what runs there.

Every diffusers pipeline calls `scheduler.step(model_output, timestep, sample)` once per step. That
call says which step it is, holds the output with guidance applied, however the pipeline made it,
and returns the latents. So the driver needs nothing else of a pipeline. While it is attached,

- `scheduler.set_timesteps` begins an image, and `scheduler.step` ends a step;
- at a step that the policy computes, the pipeline runs untouched;
- at any other step every denoiser (transformer, second expert, U-Net, ControlNet) is stood in for:
  it does not run, and returns zeros of the shapes that it last returned at that pass. Nobody uses
  them, because the scheduler is given what the policy says.

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
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel

from eigencache._upstream import CACHES, COMPILED, WRAPPED, pytree, steps_announced
from eigencache.plan import PlanError
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
    """

    steps: int | None = None

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
            if not driver.passes and self._repeats(call):
                call.index, call.repeats = len(ran) - 1, True
                return self.policy.moved(call, original(*args, **kwargs))
            call.passes = tuple(sorted(driver.passes))
            ran.append(driver.computed)
        if 0 <= self.index < len(ran):
            call.computed = ran[self.index]
        self.last = call.timestep
        if self.index < 0:
            raise PlanError(
                "the sampler takes more steps than the plan has, or was under way before the cache "
                "was enabled: make a plan for the timesteps that the pipeline really visits"
            )
        try:
            if self.index == 0:
                self.policy.begin(self._visited(call), driver and driver.pipe)
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

    def _repeats(self, call: StepCall) -> bool:
        """Return whether a call is at the timestep of the last one."""
        if self.last is None or call.timestep is self.last:
            return self.last is not None
        both = isinstance(self.last, torch.Tensor) and isinstance(call.timestep, torch.Tensor)
        return both and self.last.data_ptr() == call.timestep.data_ptr()

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
        shapes: what each denoiser is called with and returns, by name and order in a step.

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
        self.computed = True
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
        if getattr(scheduler.__dict__.get(ATTACHED), "driver", None):
            raise ValueError("a cache is already enabled on this pipeline: disable it first")
        modules = denoisers(self.pipe)
        if not modules:
            raise ValueError(f"{type(self.pipe).__name__} has no network loaded")
        for name, module in modules.items():
            check_no_cache(name, module)
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
        for switch in self._switches.values():
            switch.place()  # offloading takes it away with every image

    def stepped(self) -> None:
        """A step has ended."""
        if self.stats:
            self.stats.end()
        self.passes.clear()
        self.computed = self.step < 0 or self.policy.computes(self.step)

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
        """Raise a PlanError if the pipeline has other networks than when it was attached to."""
        called = {name for name, _ in self.shapes}
        for name, module in denoisers(self.pipe).items():
            switch = self._switches.get(name)
            missed = switch is None or switch.module is not module
            if missed and (name in called or name.startswith(DENOISERS)):
                raise PlanError(
                    f"the pipeline's {name} was replaced while the cache is enabled: disable the "
                    "cache first and enable it again after that"
                )

    def check_owner(self) -> None:
        """Raise a PlanError if another thread has begun an image meanwhile."""
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
                return known[1]
        try:
            with self.policy.running(self.step, name, index) as returned:
                output = run(*args, **kwargs)
                returned.append(output)
        except BaseException:
            self.attachment.finish()
            raise
        if known is None or known[0] != shapes:
            self.shapes[name, index] = shapes, pytree.tree_map(_empty, output)
        return output

    def _encode(self, name: str, run: Callable, args: tuple, kwargs: dict) -> Any:
        """Return what a network returns before the denoising begins; the same at every image."""
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


class _Switch:
    """Stands before the calls of one network, and hands them to the drivers attached to it.

    It is around what torch.compile made of the module, so that nothing of it is compiled, and
    around the hooks of model offloading, so that what does not run is not moved either.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.drivers, self.inside = module, dict[Driver, str](), set[int]()
        self.nested = False  # whether offloading has wrapped the switch once more

        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            switch = module.__dict__.get(ATTACHED)
            if switch is None:  # a deep copy of the module
                return type(module).forward(module, *args, **kwargs)
            return switch.call(args, kwargs)

        method.__dict__[ATTACHED] = True
        self.method = types.MethodType(method, module)
        self.name, self.found = "forward", module.__dict__.get("forward")
        self.run: Callable = module.forward
        self.inner = self.run  # what is below the switch wherever it is met for the second time

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
        name = "forward" if getattr(self.module, COMPILED) is None else COMPILED
        found, nested = self.module.__dict__.get(name), False
        if name == "forward":
            nested = self.module.__dict__.get(WRAPPED) is self.method
        if found is self.method:
            if self.nested and not nested:  # offloading was taken away, and has put it back
                self.run, self.found, self.nested = self.inner, None, False
            return
        self.name, self.found, self.run = name, found, getattr(self.module, name)
        if not nested:
            self.inner = self.run
        self.nested = nested
        # For those who ask for the signature.
        self.method.__func__.__wrapped__ = self.run  # type: ignore[attr-defined]
        self.module.__dict__[name] = self.method

    def call(self, args: tuple, kwargs: dict) -> Any:
        """Call the module, or let the driver of the pipeline that calls it decide."""
        thread = threading.get_ident()
        if thread in self.inside:
            return self.inner(*args, **kwargs)
        self.inside.add(thread)
        try:
            caller, frame = calling()
            for driver, name in self.drivers.items():
                if caller is None or driver.pipe is caller:
                    driver.abandon(frame)
                    return driver.call(name, self.module, self.run, args, kwargs)
            return self.run(*args, **kwargs)
        finally:
            self.inside.discard(thread)

    def leave(self, driver: "Driver") -> None:
        """Forget a driver; take the switch away if it was the last."""
        self.drivers.pop(driver, None)
        if self.drivers:
            return
        own = self.module.__dict__
        del own[ATTACHED]
        for name in _PLACES:
            if own.get(name) is self.method:
                del own[name]
                if name == self.name and self.found is not None:
                    own[name] = self.found
                elif name == WRAPPED:
                    own[name] = self.inner


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


def check_no_cache(name: str, module: nn.Module) -> None:
    """Raise a ValueError if a cache of diffusers or of cache-dit is enabled on a module."""
    for mark, (whose, how) in CACHES.items():
        if getattr(module, mark, False):
            raise ValueError(
                f"a cache of {whose} is enabled on {name}: call {how} first; two caches cannot be "
                "stacked"
            )


def shape_of(args: tuple, kwargs: dict) -> tuple:
    """Return what tells one kind of call from another: shapes of tensors, names, texts, flags."""
    return (*map(_told, args), *((name, _told(value)) for name, value in kwargs.items()))


def _told(value: Any) -> Any:
    """Return what `shape_of` tells of one argument; it runs at every step, and so is plain."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_told, value))
    if isinstance(value, dict):
        return tuple((name, _told(part)) for name, part in value.items())
    return ...


def _empty(leaf: Any) -> Any:
    """Return zeros of a tensor's shape that take no memory; None for what is no tensor."""
    return leaf.new_zeros(()).expand(leaf.shape) if isinstance(leaf, torch.Tensor) else None


def _device(args: tuple, kwargs: dict) -> torch.device:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device
    found = tensors([args, kwargs])
    return found[0].device if found else torch.device("cpu")

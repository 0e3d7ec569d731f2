"""The runtime: apply any plan to a diffusers transformer. It knows nothing of methods.

Where a stream is computed, as at every full step, its feature is remembered if a later row of the
plan needs it; where it is forecast its modules do not run, and one weighted sum stands in for
them. If the plan has a token-wise rule, a few tokens go through the MLPs on top of that.

Under torch.compile, compile what the cache switches off, and not the cache with it: before the
cache is enabled, replace the `forward` of the modules that the tap speaks of, which are at

    output                 transformer.forward = torch.compile(transformer.forward)
    hidden, blocks, delta  block.forward = torch.compile(block.forward), for every block
    modules                the same for each attention, MLP and projection

or, at tap output, call `transformer.compile_repeated_blocks()`. No graph breaks then, and nothing
is compiled anew as steps go by. What would trace the cache's bookkeeping at every step is refused:
a module compiled around its `forward` (`module.compile()`, `torch.compile(transformer)`) that the
cache would have to reach into. A plan that recomputes tokens is sampled uncompiled.

What is kept between steps (anchors, and what recomputed tokens add to forecasts) may be kept on
another device, `anchor_device="cpu"`. The sums are computed where the stream is, for which its
anchors come back one by one; so images are the same to the last bit, and a skipped step takes as
long as that copying does. Diffusers' model offloading (`enable_model_cpu_offload`) and the cache go
together, in either order.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from eigencache.plan import Plan, PlanError
from eigencache.runtime._hooks import HELD, Call, SilentHook, State, StreamHook, forecast
from eigencache.runtime._refreshing import refreshing_hooks
from eigencache.runtime._taps import Tapped, fingerprint, tapped, tensors
from eigencache.runtime.stats import CacheStats

__all__ = ["CacheStats", "cached", "disable_cache", "enable_cache", "forecast", "held_bytes"]

_STEP_HOOK, _STREAM_HOOK = "eigencache_step", "eigencache_stream"


class _StepHook(ModelHook):
    """On the transformer: find the step of each call from its timestep, and forget in time."""

    _is_stateful = True

    def __init__(self, plan: Plan, call: Call, stats: CacheStats) -> None:
        super().__init__()
        self.plan, self.call, self.stats = plan, call, stats
        self.is_full = plan.full.tolist()
        self.states = StateManager(State)  # type: ignore[arg-type]  # diffusers finds it here and sets its context

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.signature = inspect.signature(type(module).forward)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        state = self.call.state = self.states.get_state()
        if "timestep" in kwargs:
            timestep = kwargs["timestep"]
        else:
            timestep = self.signature.bind(module, *args, **kwargs).arguments["timestep"]
        self._advance(state, timestep)
        full = self.is_full[state.step]
        if full:
            state.seen.clear()
            state.refreshed.clear()
        self.device = timestep.device
        self.stats.begin(full, self.device)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        state = self.call.state
        self.stats.end(self.is_full[state.step], self.device)
        if state.step == len(self.plan) - 1:
            state.reset()  # nothing outlives the image
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module

    def _advance(self, state: State, timestep: torch.Tensor) -> None:
        """Move to the next step, or back to step 0 when a new image begins.

        Raises:
            PlanError: the timestep is neither; the state is reset, nothing is kept of it.
        """
        first = timestep.flatten()[0]
        # A pipeline in half precision rounds twice: to its dtype, and once more divided by 1000.
        rounding = torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
        value, timesteps = float(first), self.plan.timesteps

        def miss(step: int, scale: float) -> float:
            """How far the timestep is from a step's; infinite beyond what rounding explains."""
            expected = timesteps[step]
            distance = abs(value * scale - expected)
            return distance if distance <= 1.1 * rounding * abs(expected) + 2e-3 else math.inf

        has_next = 0 <= state.step < len(timesteps) - 1
        onward = miss(state.step + 1, state.scale) if has_next else math.inf
        # FLUX's transformer is given timestep / 1000.
        anew, scale = min((miss(0, scale), scale) for scale in (1.0, 1000.0))
        if onward < math.inf and onward <= anew:
            state.step += 1
            return
        if anew < math.inf:
            state.reset()
            state.step, state.scale = 0, scale
            return
        step, scale = (state.step + 1) % len(timesteps), state.scale
        state.reset()
        raise PlanError(
            f"the plan, made for {len(timesteps)} steps, expects timestep {timesteps[step]:g} at "
            f"step {step}, the sampler is at {value * scale:g}: sample with the number of steps, "
            "scheduler and resolution that the plan was made for, make a plan for these, or carry "
            "it over to other timesteps with Plan.retimed"
        )


def transformer_of(model: DiffusionPipeline | nn.Module) -> nn.Module:
    """Return the transformer of a diffusers pipeline, or the transformer itself.

    Raises:
        ValueError: it is neither, or a pipeline without a transformer.
    """
    transformer = model if isinstance(model, nn.Module) else getattr(model, "transformer", None)
    if not isinstance(transformer, nn.Module):
        raise ValueError(
            f"{type(model).__name__} is neither a diffusers transformer nor a pipeline that has "
            "one loaded as its `transformer`"
        )
    return transformer


def enable_cache(
    model: DiffusionPipeline | nn.Module, plan: Plan,
    anchor_device: str | torch.device | None = None,
) -> CacheStats:  # fmt: skip
    """Make a diffusers pipeline or transformer sample by a plan until `disable_cache`.

    Pipelines that name their passes (`transformer.cache_context`) keep separate state for each;
    a sampling that starts anew, at whatever resolution or batch size, starts from nothing.

    Args:
        model: a diffusers transformer, or a pipeline that has one.
        plan: what to sample by.
        anchor_device: where features of full steps are kept; by default where they are made.

    Returns:
        Counts and times of full and skipped calls, which grow as the transformer is called.

    Raises:
        ValueError: the model has no transformer, or one that has not what the plan's tap needs; a
            cache, ours or one of diffusers', is enabled already; or the transformer is compiled in
            a way that would compile the cache too.
        PlanError: the plan was calibrated on another model, or lacks a stream of this one.
    """
    transformer = transformer_of(model)
    _check_compiled(transformer, {transformer})
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(_STEP_HOOK) or getattr(transformer, "is_cache_enabled", False):
        raise ValueError("a cache is already enabled on this transformer: disable it first")
    if plan.model is not None and plan.model != fingerprint(transformer):
        raise PlanError(
            f"the plan was calibrated on model {plan.model}, this is {fingerprint(transformer)}: "
            "calibrate a kernel and make a plan for this model"
        )
    found, stats = tapped(transformer, plan.tap, bool(plan.refresh)), CacheStats(plan)
    call = Call(None if anchor_device is None else torch.device(anchor_device))
    if plan.refresh:
        pairs = refreshing_hooks(plan, transformer, found, call)
    else:
        pairs = _hooks(plan, found, call)
    hooks = [(module, hook, _STREAM_HOOK) for module, hook in pairs]
    hooks += [(transformer, _StepHook(plan, call, stats), _STEP_HOOK)]  # outermost, so it is last
    _check_compiled(transformer, {module for module, _ in pairs})
    with _offloading_apart(transformer):
        for module, hook, name in hooks:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    registry.invalidate_child_registries_cache()
    return stats


def _hooks(plan: Plan, found: Tapped, call: Call) -> list[tuple[nn.Module, ModelHook]]:
    """Return the modules to hook for a plan that recomputes no tokens, each with its hook."""
    hooks = {
        name: [StreamHook(plan, name, stream, i, call) for i in range(len(stream.modules))]
        for name, stream in found.streams.items()
    }
    pairs: list[tuple[nn.Module, ModelHook]] = []
    for name, stream in found.streams.items():
        pairs += zip(stream.modules, hooks[name], strict=True)
    return pairs + [(module, SilentHook(hooks[name][0])) for module, name in found.silent]


def _check_compiled(transformer: nn.Module, hooked: set[nn.Module]) -> None:
    """Raise a ValueError if a hook would lie inside something that is compiled."""
    for name, module in transformer.named_modules():
        around = is_compiled_module(module) or module._compiled_call_impl is not None
        if around or hasattr(module.forward, "_torchdynamo_orig_callable"):
            inside = {inner for inner in module.modules() if inner in hooked}
            if inside - (set() if around else {module}):
                raise ValueError(
                    f"{name or 'the transformer'} is compiled, and the cache would be compiled "
                    "with it: compile the `forward` of what the cache switches off instead, as "
                    "the text of eigencache.runtime says"
                )


def disable_cache(model: DiffusionPipeline | nn.Module) -> None:
    """Remove what `enable_cache` attached and all it remembered; do nothing if not enabled.

    Args:
        model: the transformer, or the pipeline that has it.

    Raises:
        ValueError: the model has no transformer.
    """
    transformer = transformer_of(model)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    with _offloading_apart(transformer):
        for name in (_STEP_HOOK, _STREAM_HOOK):
            registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


def held_bytes(transformer: nn.Module) -> int:
    """Return how many bytes the cache of a transformer keeps at this moment; 0 if none is enabled.

    Counted is the memory behind tensors, once each, wherever they are kept: the anchors, and of
    plans that recompute tokens what these need. It is largest between two calls.
    """
    hook = HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_STEP_HOOK)
    states = hook.states._state_cache.values() if isinstance(hook, _StepHook) else ()
    kept = [[vars(state)[name] for name in HELD] for state in states]
    memory = {held.untyped_storage()._cdata: held.untyped_storage() for held in tensors(kept)}
    return sum(storage.nbytes() for storage in memory.values())


@contextlib.contextmanager
def _offloading_apart(transformer: nn.Module) -> Iterator[None]:
    """Take the hook of model offloading off, and put it on again around what was done meanwhile.

    Offloading replaces its hook after every image by the `forward` that it found: hooks around it
    would be lost with the first image, and offloading with hooks that were below it.
    """
    hook = getattr(transformer, "_hf_hook", None)
    if hook is not None:
        remove_hook_from_module(transformer)
    try:
        yield
    finally:
        if hook is not None:
            add_hook_to_module(transformer, hook)


@contextlib.contextmanager
def cached(
    model: DiffusionPipeline | nn.Module, plan: Plan,
    anchor_device: str | torch.device | None = None,
) -> Iterator[CacheStats]:  # fmt: skip
    """Sample by a plan inside a `with` block.

    Args:
        model: a diffusers pipeline or its transformer, as for `enable_cache`.
        plan: what to sample by.
        anchor_device: where features of full steps are kept; by default where they are made.

    Yields:
        Counts and times of full and skipped calls; print them after the block, or inside it.

    Raises:
        ValueError: the model cannot be cached so, as `enable_cache` says.
        PlanError: the plan is of another model; or, when the pipeline is called in the block, of
            other timesteps.
    """
    stats = enable_cache(model, plan, anchor_device)
    try:
        yield stats
    finally:
        disable_cache(model)

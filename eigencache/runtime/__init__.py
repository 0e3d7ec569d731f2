"""The runtime: apply any plan to a diffusers pipeline. It knows nothing of methods.

At the tap "output" the plan works on what the pipeline gives its scheduler (`_driver.py`): it holds
for any pipeline, network, guidance and scheduler, and at skipped steps no network runs.

Other taps are inside the transformer, whose modules get hooks. Where a stream is computed, as at
every full step, its feature is remembered if a later row of the plan needs it; where it is forecast
its modules do not run, and one weighted sum stands in for them. Which blocks the network has, in
which order they run and what goes through them is recorded at full steps (`_blocks.py`), of which
the first step of every image is one. That is inspected too (`_inspection.py`): where the tap cannot
take how the network runs, or more of it would go on running at skipped steps, an error says so. If
the plan has a token-wise rule, a few tokens go through the MLPs on top of that.

Under torch.compile, the tap "output" takes a pipeline as it is: `torch.compile(pipe.transformer)`,
`pipe.transformer.compile()` and `compile_repeated_blocks()` all work, before the cache is enabled.
For taps inside, compile the modules that the cache switches off, before it is enabled:

    hidden, blocks, delta  block.forward = torch.compile(block.forward), for every block
    modules                the same for each attention, MLP and projection

A module compiled around its `forward` that the cache would have to reach into is refused, because
the cache's own work would be compiled with it. A plan that recomputes tokens is sampled uncompiled.

A bare transformer, called without a pipeline, has no scheduler: there the step is found from the
`timestep` that it is called with, and its passes are told apart by `transformer.cache_context`.

What is kept between steps (anchors, and what recomputed tokens add to forecasts) may be kept on
another device, `anchor_device="cpu"`. The sums are computed where the stream is, for which its
anchors come back one by one; so images are the same to the last bit, and a skipped step takes as
long as that copying does. Diffusers' model offloading (`enable_model_cpu_offload`) and the cache go
together, in either order.
"""

import contextlib
import importlib
import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from diffusers import DiffusionPipeline
from torch import nn

from eigencache._upstream import (
    Hook,
    HookRegistry,
    States,
    has_compiled_forward,
    hook_of,
    is_compiled,
    is_compiled_module,
    offloading_of,
)
from eigencache.plan import Plan, PlanError, PlanWarning
from eigencache.runtime._driver import DRIVER, Driver, Policy, check_no_cache
from eigencache.runtime._hooks import Call, State, forecast
from eigencache.runtime._inspection import STREAM_HOOK, Inspection
from eigencache.runtime._policies import InnerPolicy, OutputPolicy
from eigencache.runtime._refreshing import hooks_of
from eigencache.runtime._taps import DENOISERS, fingerprint, network_of
from eigencache.runtime.stats import CacheStats

__all__ = ["CacheStats", "cached", "disable_cache", "enable_cache", "forecast", "watched"]

STEP_HOOK = "eigencache_step"
Pairs = list[tuple[nn.Module, Hook]]  # of modules and their hooks


class StepHook(Hook):
    """On the transformer: find the step of each call from its timestep, and forget in time."""

    _is_stateful = True

    def __init__(self, call: Call, stats: CacheStats, inspection: Inspection) -> None:
        super().__init__()
        self.plan, self.call, self.stats, self.inspection = call.plan, call, stats, inspection
        self.is_full = self.plan.full.tolist()
        self.signature = inspect.signature(type(inspection.transformer).forward)
        self.states = States(State)  # type: ignore[arg-type]  # diffusers sets its context

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.call.state = self.states.get_state()
        if "timestep" in kwargs:
            timestep = kwargs["timestep"]
        else:
            timestep = self.signature.bind(module, *args, **kwargs).arguments["timestep"]
        check_no_cache("the transformer", module)
        self._advance(state, timestep)
        full = self.is_full[state.step]
        state.begin(full)
        with self.inspection.of(state) as returned:
            self.stats.begin(full, timestep.device)
            output = self.original(*args, **kwargs)
            self.stats.end()
            returned.append(output)
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


def enable_cache(
    model: Any, plan: Plan | None = None, anchor_device: str | torch.device | None = None, *,
    full_steps: int | None = None, speedup: float | None = None, psnr: float | None = None,
) -> CacheStats:  # fmt: skip
    """Make a diffusers pipeline sample by a plan, or by a built-in one, until `disable_cache`.

    A cached pipeline makes one image, or one batch, at a time. A sampling that starts anew, at
    whatever resolution or batch size, starts from nothing.

    Args:
        model: a diffusers pipeline; or a bare transformer, which is called without one.
        plan: what to sample by. In its place, state one of the last three for a built-in plan,
            which is designed when an image begins, for the steps that its sampler takes
            (`eigencache.built_in`). Nothing is calibrated for it.
        anchor_device: where features of full steps are kept; by default where they are made.
        full_steps: how many steps are computed in full.
        speedup: how many times fewer steps are computed in full than the sampler takes, at least.
        psnr: a quality in dB to the images of full runs. The first call is preceded by a probe
            with its arguments (`eigencache.calibration.probe`), which takes as long as some five
            images in full and is announced by one line of the logger "eigencache". Its plan is not
            built in, but made for the model; later calls, with other arguments too, keep to it, or
            to its number of full steps where their timesteps differ.

    Returns:
        Counts and times of full and skipped steps, which grow as images are made.

    Raises:
        ValueError: not just one of `plan`, `full_steps`, `speedup` and `psnr` is stated, or it is
            out of range; the pipeline has no scheduler, or no network that has what the plan's tap
            needs; a cache, ours or one of diffusers', is enabled already; or the transformer is
            compiled in a way that would compile the cache too.
        PlanError: the plan was calibrated on another model, or lacks a stream of this one; or
            there is no built-in plan for the scheduler. At taps that speak of blocks, which of them
            there are is not known before the first call, which raises this in that case.

    With `psnr`, the first call of the pipeline raises a ValueError if no plan that skips a step is
    predicted to reach it, or the pipeline makes neither images nor frames.
    """
    device = None if anchor_device is None else torch.device(anchor_device)
    if plan is None:
        # By name: jobs of the workflow sample by plans, and need not run again where built-in plans
        # change (`reproduction.provenance.code` follows import statements).
        built_in = importlib.import_module("eigencache.runtime._built_in")
        budget = built_in.Budget(full_steps, speedup, psnr)
    elif (full_steps, speedup, psnr) != (None, None, None):
        raise ValueError(
            "state a plan, or full_steps, speedup or psnr for a built-in one, not both"
        )
    elif not isinstance(plan, Plan):
        raise ValueError(
            f"plan: {plan!r} is none; a number of full steps is stated as full_steps, and a file "
            "is read by eigencache.load_plan"
        )
    if isinstance(model, nn.Module):
        if plan is None:
            raise ValueError(
                "a built-in plan is for a pipeline, whose scheduler tells the noise levels; this "
                "is a bare network: cache the pipeline, or state a plan"
            )
        return _enable_bare(model, plan, device)
    if not issubclass(type(model), DiffusionPipeline):
        raise ValueError(
            f"{type(model).__name__} is not a diffusers pipeline, nor a transformer of one"
        )
    if model.__dict__.get(DRIVER):
        raise ValueError("a cache is already enabled on this pipeline: disable it first")
    scheduler = getattr(model, "scheduler", None)
    if plan is not None:
        _check_model(plan, network_of(model))
        _check_scheduler(plan, scheduler)
    stats = CacheStats(plan)
    pairs: Pairs = []
    if plan is None:
        if scheduler is not None and psnr is None:
            built_in.kind_of(scheduler)
        policy: Policy = built_in.BuiltInPolicy(budget, stats, device)
    elif plan.tap == "output":
        policy = OutputPolicy(plan, device)
    else:
        policy, pairs = _inner_policy(plan, model, device)
    kind = Driver if psnr is None else built_in.ProbingDriver
    driver = kind(model, policy, stats)
    driver.attach()
    _register(pairs)
    model.__dict__[DRIVER] = driver
    return stats


def _inner_policy(plan: Plan, pipe: Any, device: torch.device | None) -> tuple[InnerPolicy, Pairs]:
    """Return the policy of a plan at a tap inside the network, and the modules with their hooks.

    Raises:
        ValueError: the pipeline denoises with something else than a transformer, or that does not
            have what the tap needs.
    """
    transformer, call = getattr(pipe, "transformer", None), Call(plan, device)
    if not isinstance(transformer, nn.Module):
        raise ValueError(
            f"{type(pipe).__name__} is neither a diffusers transformer nor a pipeline that has "
            "one loaded as its `transformer`: taps inside the network need one; use tap 'output'"
        )
    others = [
        name
        for name, part in pipe.components.items()
        if name.startswith(DENOISERS) and part is not None and part is not transformer
    ]
    if others:
        raise ValueError(
            f"the pipeline denoises with {', '.join(others)} beside its transformer, which a "
            f"plan at tap {plan.tap!r} would not skip: use tap 'output'"
        )
    pairs = _inner_hooks(transformer, call)
    return InnerPolicy(call, transformer, Inspection(transformer, call, pairs)), pairs


def _enable_bare(transformer: nn.Module, plan: Plan, device: torch.device | None) -> CacheStats:
    """Enable the cache on a transformer that is called without a pipeline."""
    if hook_of(transformer, STEP_HOOK):
        raise ValueError("a cache is already enabled on this transformer: disable it first")
    check_no_cache("the transformer", transformer, inside=True)
    _check_model(plan, transformer)
    stats, call = CacheStats(plan), Call(plan, device)
    _check_compiled(transformer, {transformer})
    pairs = _inner_hooks(transformer, call)
    inspection = Inspection(transformer, call, pairs)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    with _offloading_apart(transformer):
        _register(pairs)
        step = StepHook(call, stats, inspection)
        registry.register_hook(step, STEP_HOOK)  # outermost, so it is last
    registry.invalidate_child_registries_cache()
    return stats


def _check_model(plan: Plan, network: nn.Module) -> None:
    """Raise a PlanError if a plan was calibrated on another network."""
    if plan.model is not None and plan.model != fingerprint(network):
        raise PlanError(
            f"the plan was calibrated on model {plan.model}, this is {fingerprint(network)}: "
            "calibrate a kernel and make a plan for this model"
        )


def _check_scheduler(plan: Plan, scheduler: Any) -> None:
    """Warn by a PlanWarning if a plan was made with another scheduler."""
    found = type(scheduler).__name__
    if plan.scheduler is not None and scheduler is not None and plan.scheduler != found:
        warnings.warn(
            f"the plan was made with {plan.scheduler}, the pipeline has {found}: what is predicted "
            "of it does not hold; make a plan with this scheduler",
            PlanWarning, stacklevel=4,
        )  # fmt: skip


def _inner_hooks(transformer: nn.Module, call: Call) -> Pairs:
    """Return the modules to hook for the plan of a call, each with its hook."""
    if is_compiled_module(transformer):
        raise _compiled("the transformer")
    pairs = hooks_of(transformer, call)
    _check_compiled(transformer, {module for module, _ in pairs})
    return pairs


def _register(pairs: Pairs) -> None:
    for module, hook in pairs:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, STREAM_HOOK)


def _check_compiled(transformer: nn.Module, hooked: set[nn.Module]) -> None:
    """Raise a ValueError if a hook would lie inside something that is compiled."""
    for name, module in transformer.named_modules():
        around = is_compiled(module)
        if around or has_compiled_forward(module):
            inside = {inner for inner in module.modules() if inner in hooked}
            if inside - (set() if around else {module}):
                raise _compiled(name or "the transformer")


def _compiled(name: str) -> ValueError:
    """Return the error that says what to compile instead."""
    return ValueError(
        f"{name} is compiled, and the cache would be compiled with it: before the cache is "
        "enabled, compile what it switches off instead, "
        "`block.forward = torch.compile(block.forward)` for every block (at tap 'modules' for "
        "every attention, MLP and projection); or cache a pipeline at tap 'output', which takes "
        "any compiled network"
    )


def disable_cache(model: DiffusionPipeline | nn.Module) -> None:
    """Remove what `enable_cache` attached and all it remembered; do nothing if not enabled.

    Args:
        model: the pipeline or the bare transformer that it was called with.
    """
    if not isinstance(model, nn.Module):
        driver = model.__dict__.pop(DRIVER, None)
        if driver is None:
            return
        driver.detach()
        if not isinstance(driver.policy, InnerPolicy):
            return
        model = driver.policy.transformer
    registry = HookRegistry.check_if_exists_or_initialize(model)
    with _offloading_apart(model):
        for name in (STEP_HOOK, STREAM_HOOK):
            registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


@contextlib.contextmanager
def _offloading_apart(transformer: nn.Module) -> Iterator[None]:
    """Take the hook of model offloading off, and put it on again around what was done meanwhile.

    Offloading replaces its hook after every image by the `forward` that it found: hooks around it
    would be lost with the first image, and offloading with hooks that were below it.
    """
    hook = offloading_of(transformer)
    if hook is not None:
        remove_hook_from_module(transformer)
    try:
        yield
    finally:
        if hook is not None:
            add_hook_to_module(transformer, hook)


@contextlib.contextmanager
def cached(
    model: DiffusionPipeline | nn.Module, plan: Plan | None = None,
    anchor_device: str | torch.device | None = None, *, full_steps: int | None = None,
    speedup: float | None = None, psnr: float | None = None,
) -> Iterator[CacheStats]:  # fmt: skip
    """Sample by a plan, or by a built-in one, inside a `with` block.

    Args:
        model: a diffusers pipeline or a bare transformer, as for `enable_cache`.
        plan, full_steps, speedup, psnr: what to sample by: just one, as for `enable_cache`.
        anchor_device: where features of full steps are kept; by default where they are made.

    Yields:
        Counts and times of full and skipped calls; print them after the block, or inside it.

    Raises:
        ValueError: the model cannot be cached so, as `enable_cache` says.
        PlanError: the plan is of another model; or, when the pipeline is called in the block, of
            other timesteps.
    """
    stats = enable_cache(
        model, plan, anchor_device, full_steps=full_steps, speedup=speedup, psnr=psnr
    )
    try:
        yield stats
    finally:
        disable_cache(model)


@contextlib.contextmanager
def watched(pipe: DiffusionPipeline) -> Iterator[CacheStats]:
    """Count and time the steps of a pipeline that samples in full, inside a `with` block.

    Args:
        pipe: a diffusers pipeline without a cache.

    Yields:
        Counts and times, as for `cached`.

    Raises:
        ValueError: the pipeline has no scheduler, or a cache is enabled.
    """
    stats = CacheStats()
    with Driver(pipe, Policy(), stats):
        yield stats

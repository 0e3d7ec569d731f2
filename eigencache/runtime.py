"""The runtime: apply any plan to a diffusers transformer. It knows nothing of methods.

At a full step a tapped module runs and its output is remembered, if a later row of the plan needs
it; at a skipped step the module does not run and one weighted sum is returned in its place.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from eigencache.plan import Plan, PlanError
from eigencache.taps import fingerprint, map_tensors, tapped

_STEP_HOOK, _STREAM_HOOK = "eigencache_step", "eigencache_stream"


@dataclass
class CacheStats:
    """What a cached transformer did, counted over all its calls.

    Attributes:
        full: calls that computed the tapped modules.
        skipped: calls that forecast them.
    """

    full: int = 0
    skipped: int = 0


@dataclass
class _State(BaseState):
    """Where one sampling stands, for one context (conditional and unconditional are two).

    Attributes:
        step: the sampler step of the present call; -1 before the first.
        scale: what the transformer's `timestep` is multiplied by to give the sampler's.
        anchors: stream to its remembered outputs, by step.
        silence: silent hook to the zeros that stand for its module's output.
    """

    step: int = -1
    scale: float = 1.0
    anchors: dict[str, dict[int, object]] = field(default_factory=dict)
    silence: dict[ModelHook, object] = field(default_factory=dict)

    def reset(self) -> None:
        self.step, self.anchors, self.silence = -1, {}, {}


class _StepHook(ModelHook):
    """On the transformer: find the step of each call from its timestep, and forget in time."""

    _is_stateful = True

    def __init__(self, plan: Plan, states: StateManager, stats: CacheStats):
        super().__init__()
        self.plan, self.states, self.stats = plan, states, stats

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.signature = inspect.signature(type(module).forward)
        return module

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        state = self.states.get_state()
        if "timestep" in kwargs:
            timestep = kwargs["timestep"]
        else:
            timestep = self.signature.bind(module, *args, **kwargs).arguments["timestep"]
        self._advance(state, timestep)
        if self.plan.full[state.step]:
            self.stats.full += 1
        else:
            self.stats.skipped += 1
        return args, kwargs

    def post_forward(self, module: nn.Module, output):
        state = self.states.get_state()
        if state.step == len(self.plan) - 1:
            state.reset()  # nothing outlives the image
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module

    def _advance(self, state: _State, timestep: torch.Tensor) -> None:
        """Move to the next step, or back to step 0 when a new image begins.

        Raises:
            PlanError: the timestep is neither; the state is reset, nothing is kept of it.
        """
        value = timestep.flatten()[0]
        # A pipeline in half precision rounds twice: to its dtype, and once more divided by 1000.
        rounding = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        value, timesteps = float(value), self.plan.timesteps

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
            "scheduler and resolution that the plan was made for, or make a plan for these"
        )


class _StreamHook(ModelHook):
    """On a tapped module: run and remember at a full step, forecast at a skipped one."""

    _is_stateful = True

    def __init__(self, plan: Plan, stream: str, states: StateManager):
        super().__init__()
        self.full, self.stream, self.states = plan.full, stream, states
        weights = plan.weights_of(stream)
        # Of each step: the anchors it is forecast from, with weights; and the last step that
        # needs it as an anchor (itself, when none does).
        self.rows = [[(int(a), float(row[a])) for a in row.nonzero()[0]] for row in weights]
        self.last_use = [
            max([a, *(int(s) for s in weights[:, a].nonzero()[0])]) for a in range(len(weights))
        ]

    def new_forward(self, module: nn.Module, *args, **kwargs):
        state = self.states.get_state()
        anchors = state.anchors.setdefault(self.stream, {})
        if self.full[state.step]:
            output = self.fn_ref.original_forward(*args, **kwargs)
            if self.last_use[state.step] > state.step:
                anchors[state.step] = output
        else:
            output = forecast([(anchors[a], weight) for a, weight in self.rows[state.step]])
        for a in [a for a in anchors if self.last_use[a] <= state.step]:
            del anchors[a]
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


class _SilentHook(ModelHook):
    """On a module that only feeds streams: at a skipped step, return zeros that take no memory."""

    _is_stateful = True

    def __init__(self, plan: Plan, states: StateManager):
        super().__init__()
        self.full, self.states = plan.full, states

    def new_forward(self, module: nn.Module, *args, **kwargs):
        state = self.states.get_state()
        if not self.full[state.step]:
            return state.silence[self]
        output = self.fn_ref.original_forward(*args, **kwargs)
        state.silence[self] = map_tensors(lambda x: x.new_zeros(()).expand(x.shape), output)
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.reset()
        return module


def forecast(terms: list[tuple[object, float]]):
    """Return the weighted sum of module outputs, summed in float32 or better.

    Args:
        terms: pairs of an output (a tensor, a tuple of tensors or a diffusers output) and its
            weight. All outputs have the same structure, shapes and dtypes.

    Returns:
        An output like those given; no terms at all, which a plan never has, raise IndexError.
    """
    outputs, weights = zip(*terms, strict=True)

    def weigh(*anchors: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(anchors[0].dtype, torch.float32)
        total = anchors[0].to(wide) * weights[0]
        for anchor, weight in zip(anchors[1:], weights[1:], strict=True):
            total.add_(anchor, alpha=weight)
        return total.to(anchors[0].dtype)

    return map_tensors(weigh, *outputs)


def enable_cache(transformer: nn.Module, plan: Plan) -> CacheStats:
    """Make a diffusers transformer sample by a plan until `disable_cache`.

    Pipelines that name their passes (`transformer.cache_context`) keep separate state for each;
    a sampling that starts anew, at whatever resolution or batch size, starts from nothing.

    Returns:
        Counts of full and skipped calls, which grow as the transformer is called.

    Raises:
        ValueError: a cache, ours or one of diffusers', is enabled already.
        PlanError: the plan was calibrated on another model, or lacks a stream of this one.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(_STEP_HOOK) or getattr(transformer, "is_cache_enabled", False):
        raise ValueError("a cache is already enabled on this transformer: disable it first")
    if plan.model is not None and plan.model != fingerprint(transformer):
        raise PlanError(
            f"the plan was calibrated on model {plan.model}, this is {fingerprint(transformer)}: "
            "calibrate a kernel and make a plan for this model"
        )
    modules, stats = tapped(transformer, plan.tap), CacheStats()
    states = StateManager(_State)
    hooks = [
        (module, _StreamHook(plan, stream, states), _STREAM_HOOK)
        for stream, module in modules.streams.items()
    ]
    hooks += [(module, _SilentHook(plan, states), _STREAM_HOOK) for module in modules.silent]
    hooks += [(transformer, _StepHook(plan, states, stats), _STEP_HOOK)]  # outermost, so it is last
    for module, hook, name in hooks:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    registry.invalidate_child_registries_cache()
    return stats


def disable_cache(transformer: nn.Module) -> None:
    """Remove what `enable_cache` attached and all it remembered; do nothing if not enabled."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    for name in (_STEP_HOOK, _STREAM_HOOK):
        registry.remove_hook(name, recurse=True)
    registry.invalidate_child_registries_cache()


@contextlib.contextmanager
def cached(transformer: nn.Module, plan: Plan) -> Iterator[CacheStats]:
    """Enable a plan inside a `with` block; yields the counts of full and skipped calls."""
    stats = enable_cache(transformer, plan)
    try:
        yield stats
    finally:
        disable_cache(transformer)

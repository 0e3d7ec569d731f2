"""Hooks: what the runtime puts on the modules of a stream, and the state that they share."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState
from torch import nn

from eigencache.plan import Plan
from eigencache.runtime._taps import Stream, map_tensors, tensors

# The parts of a state that hold something of a sampling, and nothing of the next one.
HELD = ("anchors", "devices", "passing", "silence", "seen", "refreshed")


@dataclass
class State(BaseState):
    """Where one sampling stands, for one context (conditional and unconditional are two).

    Attributes:
        step: the sampler step of the present call; -1 before the first.
        scale: what the transformer's `timestep` is multiplied by to give the sampler's.
        anchors: stream to its remembered features, by step.
        passing: what one hook leaves for another of the same call, by stream: the states that
            entered or are to leave a run of blocks, or an MLP's tokens.
        silence: silent hook to the zeros that stand for its module's output.
        seen: what the plan's token-wise rule made of the last full step, by what it observed.
        devices: stream to the device where its features are made, and its forecasts are.
        refreshed: stream to what recomputed tokens have added to its forecasts since the last full
            step, `[B, L, C]` of its dtype, and the age of its tokens, int64 `[B, L]`.
    """

    step: int = -1
    scale: float = 1.0
    anchors: dict[str, dict[int, object]] = field(default_factory=dict)
    devices: dict[str, torch.device] = field(default_factory=dict)
    passing: dict[str, Any] = field(default_factory=dict)
    silence: dict[ModelHook, object] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    refreshed: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def reset(self) -> None:
        self.step = -1
        for name in HELD:
            getattr(self, name).clear()


@dataclass
class Call:
    """The call of the transformer that is under way.

    Attributes:
        anchor_device: where anchors are kept from one call to the next; None: where they are made.
        state: what its hooks work on; None where nobody samples by the plan.
    """

    anchor_device: torch.device | None = None
    state: State | None = None

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor to keep: where anchors are kept, and no memory alive but its own."""
        tensor = tensor.to(self.anchor_device)
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class StreamHook(ModelHook):
    """On a module of a stream: run where the stream is computed, stand in where it is forecast."""

    def __init__(self, plan: Plan, name: str, stream: Stream, index: int, call: Call) -> None:
        super().__init__()
        self.name, self.stream, self.index, self.call = name, stream, index, call
        self.last = index == len(stream.modules) - 1
        weights = plan.weights_of(name)
        # Of each step: the anchors that the stream is forecast from, with weights (none where it
        # is computed); and the last step that needs it as an anchor (itself, when none does).
        self.rows = [[(int(a), float(row[a])) for a in row.nonzero()[0]] for row in weights]
        self.last_use = [
            max([a, *(int(s) for s in weights[:, a].nonzero()[0])]) for a in range(len(weights))
        ]

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.call.state
        if state is None:
            return self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]
        if self.rows[state.step]:
            return self.stand_in(state, args, kwargs)
        return self.compute(state, args, kwargs)

    def compute(self, state: State, args: tuple, kwargs: dict) -> Any:
        """Return what the module returns; at the stream's last one, remember its feature."""
        needed = self.last_use[state.step] > state.step
        if needed and self.index == 0:
            state.passing[self.name] = self.stream.entering(args, kwargs)
        output = self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]
        if needed and self.last:
            feature = self.stream.feature(state.passing.pop(self.name), output)
            anchors = state.anchors.setdefault(self.name, {})
            anchors[state.step] = map_tensors(self.call.keep, feature)
            state.devices[self.name] = tensors(feature)[0].device
        return output

    def stand_in(self, state: State, args: tuple, kwargs: dict) -> Any:
        """Return what the module would return if the stream's feature were its forecast."""
        if self.index == 0:
            feature = self.predict(state, args)
            left = self.stream.leaving(self.stream.entering(args, kwargs), feature)
            if not self.last:
                state.passing[self.name] = left
        else:
            left = state.passing.pop(self.name) if self.last else state.passing[self.name]
        return self.stream.output(self.index, left)

    def predict(self, state: State, args: tuple) -> Any:
        """Return the stream's forecast at the present step, and drop the anchors then done with."""
        return forecast(self.terms(state), state.devices[self.name])

    def terms(self, state: State) -> list[tuple[Any, float]]:
        """Return the anchors of the present step and their weights; keep those needed later."""
        anchors = state.anchors[self.name]
        row = [(anchors[a], weight) for a, weight in self.rows[state.step]]
        for a in [a for a in anchors if self.last_use[a] <= state.step]:
            del anchors[a]
        return row


class SilentHook(ModelHook):
    """On a module that only feeds a stream: where it is forecast, return zeros without memory."""

    def __init__(self, fed: StreamHook) -> None:
        super().__init__()
        self.fed = fed

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.fed.call.state
        if state is None:
            return self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]
        if self.fed.rows[state.step]:
            return self.stand_in(state, args)
        output = self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]
        state.silence[self] = map_tensors(lambda x: x.new_zeros(()).expand(x.shape), output)
        return output

    def stand_in(self, state: State, args: tuple) -> Any:
        """Return zeros of the shape that the module last returned."""
        return state.silence[self]


def forecast(
    terms: list[tuple[Any, float]], device: torch.device | None = None, wide: bool = False
) -> Any:
    """Return the weighted sum of features, summed in float32 or better.

    Features that are elsewhere are brought to the device of the sum one at a time.

    Args:
        terms: pairs of a feature (a tensor, a tuple of tensors or a diffusers output) and its
            weight. All features have the same structure, shapes and dtypes.
        device: of the sum; by default that of the features.
        wide: whether to return the sum as it was summed; else it has the features' dtype.

    Returns:
        A feature like those given; no terms at all, which a plan never has, raise IndexError.
    """
    features, weights = zip(*terms, strict=True)

    def weigh(*anchors: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(anchors[0].dtype, torch.float32)
        # In one pass: a weight that has a dimension makes the product wide, a number would not.
        leading = anchors[0].new_full((1,), weights[0], dtype=dtype, device=device)
        total = anchors[0].to(device) * leading
        for anchor, weight in zip(anchors[1:], weights[1:], strict=True):
            total.add_(anchor.to(device), alpha=weight)
        return total if wide else total.to(anchors[0].dtype)

    return map_tensors(weigh, *features)

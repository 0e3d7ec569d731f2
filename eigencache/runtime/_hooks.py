"""Hooks: what the runtime puts on the modules of a stream, and the state that they share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from eigencache._upstream import BaseState, Hook
from eigencache.plan import Plan, PlanError
from eigencache.runtime._blocks import Ran, Record, size_of
from eigencache.runtime._taps import map_tensors, tensors


@dataclass
class State(BaseState):
    """Where one sampling stands, for one context (conditional and unconditional are two).

    Attributes:
        step: the sampler step of the present call; -1 before the first.
        scale: what the transformer's `timestep` is multiplied by to give the sampler's.
        anchors: stream to its remembered features, by step. A module that is called several times
            per call of the transformer has as many streams: "name", "name, call 2" ...
        turns: hook to how often its module was called in the present call of the transformer, in
            the order of the first of these calls.
        sizes: stream to the shape of the first tensor that its module was last given.
        passing: what one hook leaves for another of the same call, by stream: the states that
            entered or are to leave a run of blocks, or an MLP's tokens.
        silence: silent hook and call to the zeros that stand for its module's output.
        seen: what the plan's token-wise rule made of the last full step, by what it observed.
        devices: stream to the device where its features are made, and its forecasts are.
        calls: number, from 1, to the call of a list's entry in the last recorded pass.
        refreshed: stream to what recomputed tokens have added to its forecasts since the last full
            step, `[B, L, C]` of its dtype, and the age of its tokens, int64 `[B, L]`.
    """

    step: int = -1
    scale: float = 1.0
    anchors: dict[str, dict[int, object]] = field(default_factory=dict)
    devices: dict[str, torch.device] = field(default_factory=dict)
    passing: dict[str, Any] = field(default_factory=dict)
    silence: dict[tuple[Hook, str], object] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, Ran] = field(default_factory=dict)
    refreshed: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    turns: dict[Hook, int] = field(default_factory=dict)
    sizes: dict[str, torch.Size | None] = field(default_factory=dict)

    def begin(self, full: bool) -> None:
        """A call of the transformer begins."""
        self.turns.clear()
        if full:
            self.seen.clear()
            self.refreshed.clear()

    def turn(self, hook: Hook, name: str) -> str:
        """Return the stream of a call of the module that has `hook`, and count the call."""
        turn = self.turns[hook] = self.turns.get(hook, 0) + 1
        return name if turn == 1 else f"{name}, call {turn}"

    def held(self) -> list[Any]:
        """Return all that is kept of the sampling."""
        return [kept for kept in vars(self).values() if isinstance(kept, dict)]

    def reset(self) -> None:
        self.step = -1
        for kept in self.held():
            kept.clear()


@dataclass
class Call:
    """The call of the transformer that is under way.

    Attributes:
        plan: what is sampled by.
        anchor_device: where anchors are kept from one call to the next; None: where they are made.
        state: what its hooks work on; None where nobody samples by the plan.
        record: of the pass under way, at taps that speak of blocks.
        needs: of each stream.
    """

    plan: Plan
    anchor_device: torch.device | None = None
    state: State | None = None
    record: Record | None = None
    needs: dict[str, "Needs"] = field(default_factory=dict)

    def needs_of(self, name: str) -> "Needs":
        """Return which anchors the steps of a stream need."""
        if name not in self.needs:
            self.needs[name] = Needs(self.plan.weights_of(name))
        return self.needs[name]

    def remember(
        self, stream: str, key: str, size: torch.Size | None, feature: Callable[[], Any]
    ) -> None:
        """Keep a stream's feature at the present step, if a later one needs it; `size` of input."""
        state = self.state
        assert state is not None, "a call is under way"
        if state.sizes.get(key) != size:
            state.anchors.pop(key, None)  # of a call with other shapes, as of a batch
            state.sizes[key] = size
        if self.needs_of(stream).later(state.step):
            made = feature()
            state.anchors.setdefault(key, {})[state.step] = map_tensors(self.keep, made)
            state.devices[key] = tensors(made)[0].device

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor to keep: where anchors are kept, and no memory alive but its own."""
        tensor = tensor.to(self.anchor_device)
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class Needs:
    """Which anchors the steps of one stream need, by its weights `[T, T]` in a plan.

    Attributes:
        rows: of each step, the full steps that it is forecast from, with their weights; none where
            the stream is computed.
        last: of each step, the last step that is forecast from it; itself if none is.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.rows = [[(int(a), float(row[a])) for a in row.nonzero()[0]] for row in weights]
        self.last = [int(max([a, *weights[:, a].nonzero()[0]])) for a in range(len(weights))]

    def later(self, step: int) -> bool:
        """Return whether a step is computed and a later one forecast from it."""
        return self.last[step] > step and not self.rows[step]

    def take(self, anchors: dict[int, Any], step: int) -> list[tuple[Any, float]]:
        """Return the anchors of a step with their weights; forget those that no later step needs.

        Raises:
            KeyError: an anchor is missing; nothing is forgotten.
        """
        terms = [(anchors[a], weight) for a, weight in self.rows[step]]
        for a in [a for a in anchors if self.last[a] <= step]:
            del anchors[a]
        return terms


class StreamHook(Hook):
    """On a module whose output is a stream: run where it is computed, else return its forecast."""

    def __init__(self, name: str, call: Call) -> None:
        super().__init__()
        self.name, self.call, self.needs = name, call, call.needs_of(name)
        self.key = name  # of the present call of the module
        self.size: torch.Size | None = None  # of the stream's input in that call

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.call.state
        if state is None:
            return self.original(*args, **kwargs)
        self.key, self.size = state.turn(self, self.name), size_of(args, kwargs)
        if self.needs.rows[state.step]:
            return self.predict(state, args)
        return self.compute(state, args, kwargs)

    def compute(self, state: State, args: tuple, kwargs: dict) -> Any:
        """Return what the module returns, and remember it."""
        output = self.original(*args, **kwargs)
        self.call.remember(self.name, self.key, self.size, lambda: output)
        return output

    def predict(self, state: State, args: tuple) -> Any:
        """Return the stream's forecast at the present step, and drop the anchors then done with."""
        return forecast(self.terms(state), state.devices[self.key])

    def missing(self, state: State) -> PlanError:
        """Return the error of a call at the present step of which there are no anchors."""
        return PlanError(
            f"at step {state.step} {self.key} is called where it was not at the full steps "
            "before, or with other shapes (another batch, guidance from that step on): make a "
            "plan in which the step is full, or use tap 'output'"
        )

    def terms(self, state: State) -> list[tuple[Any, float]]:
        """Return the anchors of the present step and their weights; keep those needed later."""
        if state.sizes.get(self.key) != self.size:
            raise self.missing(state)
        try:
            return self.needs.take(state.anchors.get(self.key, {}), state.step)
        except KeyError:
            raise self.missing(state) from None


class BlockHook(StreamHook):
    """On an entry of a list: record its calls, and stand in where they are of a forecast stream."""

    def __init__(self, name: str, call: Call) -> None:
        Hook.__init__(self)
        self.name, self.call = name, call

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state, record = self.call.state, self.call.record
        if state is None or record is None:
            return self.original(*args, **kwargs)
        record.enter(self.name, module, args, kwargs)
        known = None if self.call.plan.full[state.step] else self.find(state, record.count)
        if known and self.needs.rows[state.step]:
            output = self.stand_in_for(state, known, record.open[-1])
        else:
            output = self.original(*args, **kwargs)
        record.leave(output)
        return output

    def find(self, state: State, number: int) -> Ran | None:
        """Return the present call as it was recorded; None if it is not one of a block."""
        known, self.key = state.calls.get(number), self.name
        if known is None or known.name != self.name:
            raise self.missing(state)
        if known.names:
            self.key, self.needs = known.key, self.call.needs_of(known.stream)
        return known if known.names else None

    def stand_in_for(self, state: State, known: Ran, now: Ran) -> Any:
        """Return what the block would return if the feature of its stream were its forecast."""
        entered = tuple(now.given[name] for name in known.names)
        began = (entered, now.size) if known.first else state.passing.pop(self.key)
        if not known.last:
            state.passing[self.key] = began
            return known.output(entered)
        first, self.size = began
        feature = self.predict(state, ())
        if self.call.plan.tap == "hidden":
            return known.output(feature + entered[1:])
        return known.output(tuple(a + b for a, b in zip(first, feature, strict=False)))


class SilentHook(Hook):
    """On a module that only feeds a stream: where it is forecast, return zeros without memory."""

    def __init__(self, fed: StreamHook) -> None:
        super().__init__()
        self.fed, self.key = fed, fed.name

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = self.fed.call.state
        if state is None:
            return self.original(*args, **kwargs)
        self.key = state.turn(self, self.fed.name)
        if self.fed.needs.rows[state.step]:
            return self.stand_in(state, args)
        output = self.original(*args, **kwargs)
        state.silence[self, self.key] = map_tensors(
            lambda x: x.new_zeros(()).expand(x.shape), output
        )
        return output

    def stand_in(self, state: State, args: tuple) -> Any:
        """Return zeros of the shape that the module last returned."""
        if (self, self.key) not in state.silence:
            raise self.fed.missing(state)
        return state.silence[self, self.key]


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

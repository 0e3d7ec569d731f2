"""The hooks of a plan, with those that recompute tokens at skipped steps (`eigencache.tokens`)."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from eigencache._upstream import Hook
from eigencache.plan import Plan
from eigencache.runtime._blocks import BLOCK_TAPS, Record, entries_of
from eigencache.runtime._hooks import BlockHook, Call, SilentHook, State, StreamHook, forecast
from eigencache.runtime._taps import Mlp, Tapped, tapped, working_blocks
from eigencache.tokens import Moment, Rule, attention_received

_HIDDEN = "hidden"


class AttentionHook(StreamHook):
    """On an attention: show the rule what attention each token receives."""

    def __init__(self, name: str, call: Call) -> None:
        super().__init__(name, call)
        self.rule, self.observed = _rule(call.plan), _observed(call.plan)

    def compute(self, state: State, args: tuple, kwargs: dict) -> Any:
        if not self.observed[state.step]:
            return super().compute(state, args, kwargs)
        with _Attending() as attending:
            output = super().compute(state, args, kwargs)
        if attending.received is None:
            raise ValueError(
                f"{type(self.rule).__name__} needs the attention of {self.name}, which does not "
                "use torch's scaled_dot_product_attention, or is compiled: use the native backend"
            )
        state.seen[self.name] = self.rule.observe(attending.received)
        return output


class HiddenHook(Hook):
    """On the last block: show the rule the image's states after it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.rule, self.observed, self.call = _rule(call.plan), _observed(call.plan), call

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        state = self.call.state
        if state is not None and self.observed[state.step]:
            state.seen[_HIDDEN] = self.rule.observe(output[-1])  # after the text
        return output


class MlpHook(StreamHook):
    """On an MLP, or the projection of a fused block: recompute some tokens of a forecast."""

    def __init__(self, mlp: Mlp, name: str, call: Call) -> None:
        super().__init__(name, call)
        plan = call.plan
        self.rule, self.place, self.moments = _rule(plan), mlp.place, _moments(plan)
        self.source = mlp.attention if self.rule.observes == "attention" else _HIDDEN
        # What is added to a forecast is of use while skipped steps follow.
        self.followed = [*~plan.full[1:], False]
        self.inner: list[SilentHook] = []  # of a fused block: on `proj_mlp` and `act_mlp`

    def predict(self, state: State, args: tuple) -> torch.Tensor:
        """Return the forecast with the recomputed tokens blended into it."""
        terms = self.terms(state)
        plain, dtype = forecast(terms, state.devices[self.name], True), terms[0][0].dtype
        if self.name in state.refreshed:
            added, age = state.refreshed.pop(self.name)
        else:
            added = plain.new_zeros(())
            age = torch.zeros(plain.shape[:2], dtype=torch.int64, device=plain.device)
        seen, moment = state.seen[self.source], self.moments[state.step]
        tokens = self.rule.pick(seen, age, self.place, moment)
        fresh = self._recompute(state, args[0], tokens).to(plain.dtype)
        blended = self.rule.blend(plain + added.to(plain.device), fresh, tokens, seen)
        if self.followed[state.step]:
            added, age = (blended - plain).to(dtype), (age + 1).scatter_(1, tokens, 0)
            state.refreshed[self.name] = self.call.keep(added), age
        return blended.to(dtype)

    def _recompute(self, state: State, entered: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP's output for `tokens` `[B, k]`, from all that entered it `[B, L, ...]`."""
        entered = _gather(entered, tokens)
        if self.inner:
            hidden = _gather(state.passing.pop(self.name), tokens)
            for hook in self.inner:
                hidden = hook.original(hidden)
            attention = entered[..., : -hidden.shape[-1]]
            entered = torch.cat([attention, hidden], dim=-1)
        return self.original(entered)


class FeedingHook(SilentHook):
    """On the first module of a fused block's MLP: leave its tokens for the projection's hook."""

    def stand_in(self, state: State, args: tuple) -> Any:
        state.passing[self.fed.name] = args[0]
        return super().stand_in(state, args)


class _Attending(TorchFunctionMode):
    """While active, keep what attention the tokens of the last attention received."""

    received: torch.Tensor | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            self.received = _received(*args, **kwargs)
        return function(*args, **kwargs)


def _received(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """Return what attention each token receives, from the arguments of torch's attention."""
    if attn_mask is not None or is_causal:
        raise ValueError(
            "masked attention cannot score tokens: choose a method that recomputes none"
        )
    return attention_received(query, key, scale or query.shape[-1] ** -0.5)


def hooks_of(transformer: nn.Module, call: Call) -> list[tuple[nn.Module, Hook]]:
    """Return the modules to hook for the plan of a call, each with its hook."""
    plan = call.plan
    if plan.tap in BLOCK_TAPS:
        call.record = Record(transformer, plan.tap, call.remember)
        return [(entry, BlockHook(name, call)) for name, entry in entries_of(transformer).items()]
    found = tapped(transformer, plan.tap, bool(plan.refresh))
    hooks = {name: _stream_hook(found, name, call) for name in found.streams}
    pairs: list[tuple[nn.Module, Hook]] = [(found.streams[name], hooks[name]) for name in hooks]
    for module, name in found.silent:
        fed = hooks[name]
        if isinstance(fed, MlpHook):
            silent = SilentHook(fed) if fed.inner else FeedingHook(fed)
            fed.inner.append(silent)
        else:
            silent = SilentHook(fed)
        pairs.append((module, silent))
    if plan.refresh and plan.refresh.observes == "hidden":
        *_, (_, _, last) = working_blocks(transformer)
        pairs.append((last, HiddenHook(call)))
    return pairs


def _stream_hook(found: Tapped, name: str, call: Call) -> StreamHook:
    """Return the hook of a stream: what a token-wise rule wants there, if one does."""
    rule, mlp = call.plan.refresh, found.mlps.get(name)
    if rule and mlp and (rule.text or not mlp.place.text):
        return MlpHook(mlp, name, call)
    attends = any(mlp.attention == name for mlp in found.mlps.values())
    if rule and attends and rule.observes == "attention":
        return AttentionHook(name, call)
    return StreamHook(name, call)


def _rule(plan: Plan) -> Rule:
    assert plan.refresh is not None, "the plan has no token-wise rule"
    return plan.refresh


def _observed(plan: Plan) -> list[bool]:
    """Return, of each step, whether it is a full one that a skipped one follows."""
    return [*(bool(now and not after) for now, after in pairwise(plan.full)), False]


def _moments(plan: Plan) -> list[Moment]:
    """Return the moment of each step."""
    starts = [*plan.full_steps, len(plan)]
    gaps = {a: after - a for a, after in pairwise(starts)}
    last = [max(a for a in plan.full_steps if a <= step) for step in range(len(plan))]
    return [Moment(step / len(plan), gaps[a]) for step, a in enumerate(last)]


def _gather(tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the tokens `[B, k]` of a tensor `[B, L, C]`: `[B, k, C]`."""
    return tensor.gather(1, tokens[..., None].expand(-1, -1, tensor.shape[-1]))

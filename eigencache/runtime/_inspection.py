"""Inspection: in the first step of an image, how does the network run, and can the tap take it?"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from eigencache._upstream import Hook, hook_of
from eigencache.plan import PlanError
from eigencache.runtime._hooks import Call, SilentHook, State, StreamHook
from eigencache.runtime._taps import WEIGHTED

STREAM_HOOK = "eigencache_stream"


class Inspection:
    """What is checked in the first step of every image, which every plan computes in full.

    - The modules that have hooks are those of the transformer still.
    - At the taps that speak of blocks, which run when and what their states are is recorded.
    - Nothing in a list of modules works on as many tokens as the streams do and is no part of them:
      it would go on running at skipped steps. What prepares the prompt may.

    Args:
        transformer: whose modules have the hooks.
        call: which the hooks share.
        pairs: of modules and their hooks.
    """

    def __init__(
        self, transformer: nn.Module, call: Call, pairs: Sequence[tuple[nn.Module, Hook]]
    ) -> None:
        self.transformer, self.call, self.tap = transformer, call, call.plan.tap
        hooked = {module for module, _ in pairs}
        self.places = {name: m for name, m in transformer.named_modules() if m in hooked}
        covered = {
            inner
            for module, hook in pairs
            if isinstance(hook, StreamHook | SilentHook)
            for inner in module.modules()
        }
        self.outside = dict(_listed(transformer, covered))
        self.tokens: dict[str, int] = {}
        self.handles: list[Any] = []

    def begin(self, state: State) -> None:
        """The transformer is about to be called.

        Raises:
            PlanError: a hooked module was replaced, as when a LoRA is loaded: PEFT puts a module of
                its own in the place of one that it adapts, which is then inside of it.
        """
        self.stop()  # of a call that has raised
        state.begin(bool(self.call.plan.full[state.step]))
        if self.call.record:
            wanted = any(needs.later(state.step) for needs in self.call.needs.values())
            self.call.record.begin(on=state.step == 0 or wanted)
        if state.step > 0:
            return
        found = dict(self.transformer.named_modules())
        for name, module in self.places.items():
            if hook_of(module, STREAM_HOOK) is None or found.get(name) is not module:
                raise PlanError(
                    f"{name} was replaced while the cache is enabled, for instance by loading or "
                    "unloading a LoRA: disable the cache first and enable it again after that"
                )
        self.tokens.clear()
        for name, module in self.outside.items():
            self.handles.append(module.register_forward_pre_hook(partial(self._see, name)))

    def stop(self) -> None:
        """Watch no more."""
        while self.handles:
            self.handles.pop().remove()
        if self.call.record:
            self.call.record.begin(on=False)

    def end(self, state: State, output: Any) -> None:
        """The transformer has returned `output`.

        Raises:
            ValueError: it does not run in a way that the tap can take.
        """
        kind, record, step = type(self.transformer).__name__, self.call.record, state.step
        if record and not self.call.plan.full[step] and record.count < len(state.calls):
            raise PlanError(
                f"{kind} runs fewer blocks at step {step} than before: use tap 'output'"
            )
        if record and record.on:
            record.end(output)
            state.calls = dict(enumerate(record.calls, 1))
            others = (call for call in record.calls if not call.names)
            self.tokens |= {call.name: _tokens(call.size) for call in others}
        self.stop()
        if step > 0:
            return
        if not record and not any(isinstance(hook, StreamHook) for hook in state.turns):
            raise PlanError(f"{kind} runs no module of tap {self.tap!r}: use tap 'output'")
        sizes = [_tokens(size) for size in state.sizes.values()]
        many = {size for size in sizes if 2 * size >= max(sizes)}
        for name, tokens in self.tokens.items():
            if tokens > 1 and tokens in many:
                raise PlanError(
                    f"{name} of {kind} works on {tokens} tokens and is not part of tap "
                    f"{self.tap!r}: it would keep running at skipped steps; use tap 'output'"
                )

    def _see(self, name: str, module: Any, args: tuple) -> None:
        if args and isinstance(args[0], torch.Tensor):
            channels = getattr(module, "in_features", None) or module.in_channels
            self.tokens[name] = args[0].numel() // (len(args[0]) * channels)


def _tokens(size: torch.Size | None) -> int:
    """Return how many tokens a tensor of a shape has, for one image."""
    return size[1:-1].numel() if size and len(size) > 2 else 0


def _listed(transformer: nn.Module, covered: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield what holds weights in lists of modules and is not covered, with its name."""
    for path, blocks in transformer.named_modules():
        if isinstance(blocks, nn.ModuleList):
            for name, module in blocks.named_modules(prefix=path):
                if isinstance(module, WEIGHTED) and module not in covered:
                    yield name, module

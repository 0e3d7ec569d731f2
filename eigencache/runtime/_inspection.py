"""Inspection: in the first step of an image, how does the network run, and can the tap take it?"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from eigencache._upstream import Hook, hook_of
from eigencache.plan import PlanError
from eigencache.runtime._blocks import Record
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

    @contextlib.contextmanager
    def of(self, state: State) -> Iterator[list[Any]]:
        """Record and inspect a call of the transformer, made in the block.

        Yields:
            The list to which the block appends what the transformer returns.

        Raises:
            ValueError: the transformer does not run in a way that the tap can take, or a hooked
                module was replaced.
        """
        record, first, returned = self.call.record, state.step == 0, list[Any]()
        with contextlib.ExitStack() as stack:
            if record:
                # Before the first pass it is not known which streams there are.
                needs = self.call.needs.values()
                record.begin(on=first or any(needed.later(state.step) for needed in needs))
                stack.callback(record.begin, on=False)
            if first:
                self._check_places()
                self.tokens.clear()
                for name, module in self.outside.items():
                    hook = module.register_forward_pre_hook(partial(self._see, name))
                    stack.callback(hook.remove)
            yield returned
            if record:
                self._take(record, state, returned)
        if first:
            self._check_run(state)

    def _take(self, record: Record, state: State, returned: list[Any]) -> None:
        """Take from the record of a pass what its calls are to streams."""
        if not self.call.plan.full[state.step] and record.count < len(state.calls):
            raise PlanError(
                f"{record.network} runs fewer blocks at step {state.step} than at the full steps "
                "before: use tap 'output'"
            )
        if record.on:
            record.end(returned)
            state.calls = dict(enumerate(record.calls, 1))
            others = (call for call in record.calls if not call.names)
            self.tokens |= {call.name: _tokens(call.size) for call in others}

    def _check_places(self) -> None:
        """Raise a PlanError if a hooked module was replaced, as when a LoRA is loaded.

        PEFT puts a module of its own in the place of one that it adapts, which is then inside of
        it.
        """
        found = dict(self.transformer.named_modules())
        for name, module in self.places.items():
            if hook_of(module, STREAM_HOOK) is None or found.get(name) is not module:
                raise PlanError(
                    f"{name} was replaced while the cache is enabled, for instance by loading or "
                    "unloading a LoRA: disable the cache first and enable it again after that"
                )

    def _check_run(self, state: State) -> None:
        """Raise a PlanError if the transformer runs no module of the tap, or more than these."""
        kind = type(self.transformer).__name__
        ran = any(isinstance(hook, StreamHook) for hook in state.turns)
        if not ran and not self.call.record:
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

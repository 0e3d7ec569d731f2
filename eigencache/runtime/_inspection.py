"""Inspection: in the first step of an image, does the network run as the tap takes it to?"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from eigencache._upstream import Hook, hook_of
from eigencache.plan import PlanError
from eigencache.runtime._hooks import SilentHook, State, StreamHook
from eigencache.runtime._taps import WEIGHTED

STREAM_HOOK = "eigencache_stream"


class Inspection:
    """What is checked in the first step of every image, which every plan computes in full.

    - The modules that have hooks are those of the transformer still.
    - At the taps "hidden" and "delta" each block runs once, in the order that the tap takes.
    - Nothing in a list of modules works on as many tokens as the streams do and is no part of them:
      it would go on running at skipped steps. What prepares the prompt may.

    Args:
        transformer: whose modules have the hooks.
        tap: one of `eigencache.plan.TAPS`.
        pairs: of modules and their hooks.
    """

    def __init__(
        self, transformer: nn.Module, tap: str, pairs: Sequence[tuple[nn.Module, Hook]]
    ) -> None:
        self.transformer, self.tap = transformer, tap
        self.hooks = [hook for _, hook in pairs if isinstance(hook, StreamHook)]
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
    def of(self, state: State) -> Iterator[None]:
        """Inspect a call of the transformer, made in the block, if it is in the first step.

        Raises:
            PlanError: the transformer does not run as the tap takes it to, or a hooked module was
                replaced.
        """
        if state.step > 0:
            yield
            return
        self._check_places()
        self.tokens.clear()
        with contextlib.ExitStack() as stack:
            for name, module in self.outside.items():
                hook = module.register_forward_pre_hook(partial(self._see, name))
                stack.callback(hook.remove)
            yield
        self._check_run(state)

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
        """Raise a PlanError if the transformer has not run as the tap takes it to."""
        ran = {hook: n for hook, n in state.turns.items() if isinstance(hook, StreamHook)}
        order, kind = list(ran), type(self.transformer).__name__
        if self.tap in ("hidden", "delta"):
            ends = {hook for hook in self.hooks if hook.last or hook.index == 0}
            if self.tap == "hidden":  # what comes before the last block does not matter
                as_taken = order[-1:] == self.hooks[-1:]
            else:
                as_taken = order == [hook for hook in self.hooks if hook in ran]
            if not as_taken or not ends <= ran.keys() or max(ran.values()) > 1:
                raise PlanError(
                    f"{kind} does not run its blocks once each, in the order in which it lists "
                    f"them, as tap {self.tap!r} assumes: use tap 'output' or 'modules'"
                )
        if not order:
            raise PlanError(f"{kind} runs no module of tap {self.tap!r}: use tap 'output'")
        sizes = [size[1:-1].numel() for size in state.sizes.values() if size and len(size) > 2]
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


def _listed(transformer: nn.Module, covered: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield what holds weights in lists of modules and is not covered, with its name."""
    for path, blocks in transformer.named_modules():
        if isinstance(blocks, nn.ModuleList):
            for name, module in blocks.named_modules(prefix=path):
                if isinstance(module, WEIGHTED) and module not in covered:
                    yield name, module

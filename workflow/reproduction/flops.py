"""Floating-point operations of the networks that denoise, by torch's own counter.

The counter knows matrix products, convolutions and attention; a multiplication and an addition are
two operations. Nothing of what it does falls into the time of an image: while one is made, only the
shapes are noted that each network is called with. What a call of these shapes costs is counted
afterwards, and once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from eigencache.plan import Plan
from eigencache.runtime._driver import denoisers, may_denoise, shape_of

# Attention on a CPU, which torch's table of operations lacks.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    )
}
Shapes = tuple[str, tuple]  # the name of a network, and what tells its calls apart


class Meter:
    """Counts what the denoising networks of a pipeline compute for an image.

    Args:
        pipe: a diffusers pipeline without a cache, which is called without one or with any. The
            meter stays on its networks.
    """

    def __init__(self, pipe: Any) -> None:
        self._calls: list[Shapes] = []  # of the image that is being made
        self._new: dict[Shapes, Callable[[], Any]] = {}  # calls of shapes that were not counted yet
        self._known: dict[Any, int] = {}
        self._replaying = False
        self._counted: int | None = None  # so far, while an image is made to be counted
        for name, network in denoisers(pipe).items():
            if may_denoise(network):
                self._watch(name, network)

    def operations(self, plan: Plan | None = None, again: Callable[[], Any] | None = None) -> int:
        """Return the operations of the image that was made since the last call.

        Without a plan, and at the tap "output", a network runs as a whole or not at all: each call
        costs what a call of such shapes costs. At other taps parts of a network run at skipped
        steps too; there the first image of such shapes is made again to be counted.

        Args:
            plan: that the image was made by; None if every step was computed.
            again: makes the image once more; needed at other taps than "output".
        """
        calls, self._calls = tuple(self._calls), []
        new, self._new = self._new, {}
        if plan is None or again is None or plan.tap == "output":
            self._replaying = True
            for shapes, call in new.items():
                with torch.no_grad(), _counter() as counter:
                    call()
                self._known[shapes] = counter.get_total_flops()
            self._replaying = False
            return sum(self._known[shapes] for shapes in calls)
        key = id(plan), calls
        if key not in self._known:
            self._counted = 0
            try:
                again()
                self._known[key] = self._counted
            finally:
                self._counted = None
        return self._known[key]

    def _watch(self, name: str, network: nn.Module) -> None:
        """Note every call of a network in which anything of it runs.

        At a step that a cache skips, a network is called and nothing of it runs: so a module of it
        is watched too, the one that runs first. The hooks are torch's own, since offloading and
        caches put functions of theirs in the place of `forward`.
        """
        inner: dict[nn.Module, Any] = {}
        ran: list[nn.Module] = []
        counters: list[FlopCounterMode] = []

        def enter(module: nn.Module, args: tuple) -> None:
            ran.append(module)
            while len(inner) > 1:
                other = next(one for one in inner if one is not module)
                inner.pop(other).remove()

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            ran.clear()
            if self._counted is not None:
                counters.append(_counter())
                counters[-1].__enter__()

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if counters:
                counter = counters.pop()
                counter.__exit__(None, None, None)
                self._counted = (self._counted or 0) + counter.get_total_flops()
            elif ran and not self._replaying:
                shapes = name, shape_of(args, kwargs)
                self._calls.append(shapes)
                if shapes not in self._known:
                    self._new.setdefault(shapes, partial(network, *args, **kwargs))

        for module in network.modules():
            if module is not network:
                inner[module] = module.register_forward_pre_hook(enter)
        network.register_forward_pre_hook(before, with_kwargs=True)
        network.register_forward_hook(after, with_kwargs=True, always_call=True)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)

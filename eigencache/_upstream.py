"""What the core uses of other libraries that they do not document, all of it in this file.

Any release may change it. Hence the upper bounds in pyproject.toml, and one test for each name in
`tests/core/test_upstream.py`, which says what broke and what depends on it.
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.utils.torch_utils import is_compiled_module, unwrap_module
from torch import nn
from torch.utils import _pytree as pytree  # diffusers registers its output classes here
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "BaseState",
    "HookRegistry",
    "WeakTensorKeyDictionary",
    "is_compiled_module",
    "pytree",
]

# Where `nn.Module.compile` puts what is called in place of the module's `forward`.
COMPILED = "_compiled_call_impl"
# Where accelerate's hooks put the `forward` that they wrap.
WRAPPED = "_old_forward"
# What marks a network that another cache runs: whose cache it is, and what takes it away.
CACHES = {
    "is_cache_enabled": ("diffusers", "its disable_cache()"),
    "_is_cached": ("cache-dit", "cache_dit.disable_cache(pipe)"),
}
# What the hooks of these caches are called, on the modules of a network.
CACHE_HOOKS = (
    "faster_cache_block", "faster_cache_denoiser", "fbc_block_hook", "fbc_leader_block_hook",
    "mag_cache_block_hook", "mag_cache_leader_block_hook", "pyramid_attention_broadcast",
    "sea_cache_block", "sea_cache_leader_block", "sea_cache_root", "taylorseer_cache",
)  # fmt: skip
# Blocks whose attention is over the text first and then the image.
TEXT_FIRST = (FluxTransformerBlock, FluxSingleTransformerBlock)


class Hook(ModelHook):
    """A hook of diffusers that can run what it stands in for."""

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's `forward` as it is below this hook."""
        return self.fn_ref.original_forward(*args, **kwargs)  # type: ignore[misc]


class States(StateManager):
    """One state for each `transformer.cache_context`, which diffusers sets on a stateful hook."""

    def held(self) -> list[Any]:
        """Return the states of all contexts."""
        return list(self._state_cache.values())


def hook_of(module: nn.Module, name: str) -> ModelHook | None:
    """Return the hook of that name on a module; None if it has none."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry.get_hook(name) if registry else None


def cache_hook_in(network: nn.Module) -> tuple[str, str] | None:
    """Return the path of a module of a network that has a hook of a cache, and the hook's name."""
    for path, module in network.named_modules():
        registry = vars(module).get("_diffusers_hook")
        for name in registry.hooks if registry else ():
            if name in CACHE_HOOKS:
                return path, name
    return None


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written into; 0 in inference mode, where nothing counts it."""
    return 0 if tensor.is_inference() else tensor._version


def is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile stands around a module, in place or as a wrapper."""
    return is_compiled_module(module) or getattr(module, COMPILED) is not None


def unwrapped(network: nn.Module) -> nn.Module:
    """Return a network without what torch.compile or PEFT has put around it."""
    found: Any = unwrap_module(network)
    return found.get_base_model() if hasattr(found, "get_base_model") else found


def has_compiled_forward(module: nn.Module) -> bool:
    """Return whether a module's `forward` alone was replaced by what torch.compile made of it."""
    return hasattr(module.forward, "_torchdynamo_orig_callable")


def offloading_of(module: nn.Module) -> Any:
    """Return the hook by which accelerate offloads a module; None if it has none."""
    return getattr(module, "_hf_hook", None)


def device_of(pipe: Any) -> torch.device:
    """Return where a pipeline's networks run, also where they are offloaded meanwhile."""
    return pipe._execution_device


def steps_announced(pipe: Any) -> int | None:
    """Return how many steps a pipeline takes in the call under way; None if it does not say."""
    count = getattr(pipe, "_num_timesteps", None)
    return count if isinstance(count, int) and count > 0 else None


def progress_bar_of(pipe: Any) -> dict[str, Any]:
    """Return how a pipeline shows its progress: what `set_progress_bar_config` was given last."""
    return dict(getattr(pipe, "_progress_bar_config", {}))


def parts_needed(kind: type[DiffusionPipeline]) -> set[str]:
    """Return the components without which a pipeline of a class cannot be loaded."""
    parts, _ = kind._get_signature_keys(kind)
    return {*parts} - {*kind._optional_components} - {"self"}

"""What is seen of a pipeline while it samples: each step's latents, and what a cache keeps."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from eigencache._upstream import hook_of
from eigencache.runtime import STEP_HOOK, StepHook
from eigencache.runtime._driver import ATTACHED, DRIVER
from eigencache.runtime._taps import tensors


@contextlib.contextmanager
def following(pipe: Any, follow: Callable[[Any], None]) -> Iterator[None]:
    """Call a function after every step of a pipeline, inside a `with` block.

    Args:
        pipe: a diffusers pipeline that is cached, watched or recorded in the block around.
        follow: called with what the scheduler's `step` returned.
    """
    followers = pipe.scheduler.__dict__[ATTACHED].driver.followers
    followers.append(follow)
    try:
        yield
    finally:
        followers.remove(follow)


def held_bytes(model: DiffusionPipeline | nn.Module) -> int:
    """Return how many bytes the cache keeps at this moment; 0 if none is enabled.

    Counted is the memory behind tensors, once each, wherever they are kept: the anchors, and of
    plans that recompute tokens what these need. It is largest between two steps.
    """
    if not isinstance(model, nn.Module):
        driver = model.__dict__.get(DRIVER)
        kept: Any = driver.policy.held() if driver else ()
    else:
        hook = hook_of(model, STEP_HOOK)
        states = hook.states.held() if isinstance(hook, StepHook) else ()
        kept = [state.held() for state in states]
    storages = [tensor.untyped_storage() for tensor in tensors(kept)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

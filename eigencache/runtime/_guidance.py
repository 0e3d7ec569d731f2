"""Whether an image is sampled under guidance, and how strong that is."""

from collections.abc import Iterator
from typing import Any

import torch

from eigencache.runtime._driver import StepCall, calling
from eigencache.runtime._taps import DENOISERS

# Where there is guidance and nothing tells its scale.
UNTOLD = 3.0
# The least scale where the network takes latents twice. Some pipelines count from 0.
LEAST = 2.0


def is_guidance(name: str) -> bool:
    """Return whether an argument of a pipeline is about guidance, by how diffusers names them."""
    return "guidance" in name or "cfg" in name


def is_scale(name: str) -> bool:
    """Return whether an argument of a pipeline is a scale of guidance."""
    return is_guidance(name) and "scale" in name


def guidance_of(call: StepCall) -> float:
    """Return the scale of guidance at the first step of an image; 1 if there is no guidance.

    Whether there is any is seen, not told: the network takes every latent more than once, or has an
    input of that name. Qwen-Image has a scale of 4 that does nothing without a negative prompt, and
    guiders and perturbed passes have no scale among the arguments. The scale itself is the largest
    that the pipeline's call or its guider has.
    """
    pipe, frame = calling()
    scales = [v for name, v in (frame.f_locals if frame else {}).items() if is_scale(name)]
    scales.append(getattr(getattr(pipe, "guider", None), "guidance_scale", None))
    told = max((number for scale in scales for number in _numbers(scale)), default=UNTOLD)
    takes, embedded = taken(call)
    # The scheduler of DiT steps all latents twice. Two images of the same noise have other outputs.
    if takes == 1 and told > 1 and _is_doubled(call.sample) and _is_doubled(call.output):
        takes = 2
    if takes != 1:
        return max(told, LEAST)
    return max(told, 1.0) if embedded else 1.0


def taken(call: StepCall) -> tuple[float, bool]:
    """Return how often the networks took each latent, and whether they were given guidance."""
    taken, embedded = 0, False
    for name, _, inputs in call.passes:
        if name.startswith(DENOISERS) and inputs:
            first = inputs[0][1] if _is_named(inputs[0]) else inputs[0]
            if isinstance(first, tuple):  # a tensor's shape, or a list of tensors
                taken += first[0] if isinstance(first, torch.Size) else len(first)
            named = filter(_is_named, inputs)
            embedded |= any(is_guidance(key) and told is not None for key, told in named)
    return taken / len(call.sample), embedded


def _is_named(told: Any) -> bool:
    """Return whether what `shape_of` tells of an input is of one that was passed by its name."""
    return isinstance(told, tuple) and len(told) == 2 and isinstance(told[0], str)


def _is_doubled(batch: Any) -> bool:
    """Return whether the second half of a batch is as the first."""
    return isinstance(batch, torch.Tensor) and len(batch) % 2 == 0 and torch.equal(*batch.chunk(2))


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a scale: one, or one for each image."""
    if isinstance(value, torch.Tensor):
        yield from value.flatten().tolist()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)

"""The calls of a pipeline that plans are made on: their arguments, and how they are made."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from eigencache._upstream import progress_bar_of

# The arguments of one call of a pipeline.
Call = Mapping[str, Any]


class Ending(NamedTuple):
    """How a run ended.

    Attributes:
        step: the last.
        repeats: whether the pipeline took that step once more (`StepCall.repeats`).
        result: what the scheduler's `step` returned.
    """

    step: int
    repeats: bool
    result: Any


def calls_of(prompts: Sequence[str | Call]) -> list[Call]:
    """Return the arguments of each call from prompts or such arguments.

    Raises:
        ValueError: a prompt is neither a text nor named arguments, or empty; or there are none.
    """
    if isinstance(prompts, str | Mapping):
        raise ValueError("prompts must be a list, got a single one")
    calls: list[Call] = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping) and prompt:
            calls.append(dict(prompt))
        elif isinstance(prompt, str) and prompt.strip():
            calls.append({"prompt": prompt})
        else:
            raise ValueError(
                f"prompts[{i}] must be a text or the arguments of a call, not empty: {prompt!r}"
            )
    if not calls:
        raise ValueError("there are no prompts to calibrate on")
    return calls


class Stop(Exception):
    """Ends a call of a pipeline that has shown what was wanted."""


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Turn off the progress bar that the pipeline shows for every image, inside a `with` block."""
    before = progress_bar_of(pipe)
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


@contextmanager
def forked() -> Iterator[None]:
    """Inside a `with` block torch's own generators go on; after it they are as they were before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[Callable[[], bool]]:
    """Seed torch's own generators inside a `with` block, for schedulers that draw from them.

    Yields:
        What tells whether anything has drawn from them.
    """
    with forked():
        torch.manual_seed(seed)
        before = _generator_states()
        yield lambda: not all(map(torch.equal, before, _generator_states()))


def _generator_states() -> list[torch.Tensor]:
    """Return where torch's own generators are."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_devices]


def output_as(pipe: Any, kind: str) -> dict[str, str]:
    """Return the argument that asks a pipeline for a kind of output, or none if it takes none."""
    takes = inspect.signature(type(pipe).__call__).parameters
    return {"output_type": kind} if "output_type" in takes else {}


def called(pipe: Any, call: Mapping[str, Any], seed: int, kind: str = "latent") -> Any:
    """Return what a pipeline makes in a call, by default without decoding it if it can.

    Args:
        pipe: a pipeline of diffusers.
        call: its arguments, which may state another `output_type`.
        seed: of the noise, which is drawn on the CPU, so that it is the same on every device.
        kind: of output.
    """
    noise = torch.Generator("cpu").manual_seed(seed)
    with seeded(seed):
        return pipe(**{**output_as(pipe, kind), **call}, generator=noise)


def pictures_of(made: Any) -> Any:
    """Return the images or videos in what a pipeline returned; None if it has neither."""
    names = ("images", "image", "frames")  # of Kandinsky 5 the second
    return next((getattr(made, name) for name in names if hasattr(made, name)), None)


def eight_bit(picture: Any) -> np.ndarray:
    """Return a picture, a float array from 0 to 1 or a picture of PIL, as uint8 levels."""
    levels = np.asarray(picture)
    return levels if levels.dtype == np.uint8 else (levels * 255).round().astype(np.uint8)


def sample_of(result: Any) -> torch.Tensor:
    """Return the latents in what a scheduler's `step` returned."""
    return result[0] if isinstance(result, tuple) else result.prev_sample

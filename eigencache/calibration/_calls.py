"""The calls of a pipeline that plans are made on: their arguments, and how they are made."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

# The arguments of one call of a pipeline.
Call = Mapping[str, Any]


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


def check_arguments(pipe: Any, calls: Sequence[Call], arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if a pipeline cannot be called with these arguments, and say why.

    Args:
        pipe: a pipeline of diffusers, or its class.
        calls: the arguments that are each call's own.
        arguments: those that all calls share.
    """
    kind = pipe if isinstance(pipe, type) else type(pipe)
    if not issubclass(kind, DiffusionPipeline):
        raise ValueError(
            f"{kind.__name__} is not a diffusers pipeline: give what "
            "DiffusionPipeline.from_pretrained returns"
        )
    parameters = inspect.signature(kind.__call__).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in sorted({*arguments, *(name for call in calls for name in call)}):
        if name in ("generator", "output_type", "return_dict", "callback_on_step_end"):
            raise ValueError(f"{name}: it is stated by the calibration itself; leave it out")
        if name in ("num_images_per_prompt", "num_videos_per_prompt"):
            raise ValueError(f"{name}: a plan serves any number; leave it out of the calibration")
        if name not in parameters and not open_ended:
            near = difflib.get_close_matches(name, [*parameters][1:], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{kind.__name__} takes no argument {name!r}{hint}")


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Turn off the progress bar that the pipeline shows for every image, inside a `with` block."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
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
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's own generators inside a `with` block, for schedulers that draw from them."""
    with forked():
        torch.manual_seed(seed)
        yield


def takes(pipe: Any, name: str) -> bool:
    """Return whether a pipeline can be called with an argument of that name."""
    return name in inspect.signature(type(pipe).__call__).parameters


def latent_only(pipe: Any, arguments: Mapping[str, Any], seed: int) -> Any:
    """Call a pipeline, and let it leave out decoding if it can."""
    latent = {"output_type": "latent"} if takes(pipe, "output_type") else {}
    with seeded(seed):
        return pipe(**arguments, **latent, generator=torch.Generator("cpu").manual_seed(seed))


def sample_of(result: Any) -> torch.Tensor:
    """Return the latents in what a scheduler's `step` returned."""
    return result[0] if isinstance(result, tuple) else result.prev_sample

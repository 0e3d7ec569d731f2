"""Sampling one image, or video, with a diffusers pipeline: its noise, its time, its memory."""

import difflib
import inspect
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from eigencache._device import default_device
from eigencache._upstream import device_of, parts_needed
from eigencache.calibration._calls import called, eight_bit, pictures_of, quiet
from eigencache.plan import Plan
from eigencache.runtime import cached, watched
from eigencache.sharing import is_hub_id


@dataclass(frozen=True)
class Sample:
    """An image or a video, and what it cost.

    Attributes:
        frames: RGB, 8 bits; one of an image, all of a video.
        full_steps: how many steps were computed in full.
        seconds: of the denoising loop alone, from the first call of a network to the end of the
            last scheduler step.
        decode_seconds: from there to the image.
        peak_memory_mb: megabytes (1e6 bytes); on a GPU the peak allocated while this image was
            made, on a CPU the process's high-water mark so far.
    """

    frames: list[Image.Image]
    full_steps: int
    seconds: float
    decode_seconds: float
    peak_memory_mb: float


def pipeline_class(model: str | os.PathLike, name: str | None = None) -> type[DiffusionPipeline]:
    """Return the class of a pipeline, without loading its weights.

    Args:
        model: the pipeline's folder, or its id on the Hugging Face hub.
        name: of another class of diffusers that the same parts make, such as
            "FluxImg2ImgPipeline"; by default the one that the pipeline's model_index.json states.

    Raises:
        OSError: there is no such folder and no such model.
        ValueError: diffusers has no such class, or the pipeline lacks a part that it needs.
    """
    try:
        index = dict(DiffusionPipeline.load_config(model, local_files_only=_is_folder(model)))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{model}: neither the folder of a diffusers pipeline, which has a model_index.json, "
            "nor the id of one on the Hugging Face hub, such as black-forest-labs/FLUX.1-dev; a "
            "clone of the project fetches the models of data/models.tsv by `snakemake "
            f"models/NAME/manifest.json --cores 1` ({type(error).__name__})"
        ) from error
    chosen = name or str(index.get("_class_name"))
    made = getattr(diffusers, chosen, None)
    if not (isinstance(made, type) and issubclass(made, DiffusionPipeline)):
        hint = _hint(chosen, [name for name in dir(diffusers) if "Pipeline" in name])
        raise ValueError(f"diffusers {diffusers.__version__} has no pipeline {chosen!r}{hint}")
    lacking = sorted(parts_needed(made) - {*index})
    if lacking:
        raise ValueError(
            f"{chosen}: {model} is a {index['_class_name']} and has no {', '.join(lacking)}"
        )
    return made


def _is_folder(model: str | os.PathLike) -> bool:
    """Return whether a model is a folder, or at least no id of the hub."""
    return os.path.isdir(model) or not is_hub_id(model)


def check_arguments(
    pipe: Any, calls: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
) -> None:
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
    for name in sorted(set(arguments).intersection(*calls)) if calls else ():
        raise ValueError(f"{name}: every call states its own, so that this one is of no use")
    for name in sorted({*arguments, *(name for call in calls for name in call)}):
        if name in ("generator", "output_type", "return_dict"):
            raise ValueError(f"{name}: EigenCache sets it itself; leave it out")
        if name == "callback_on_step_end":
            raise ValueError(
                f"{name}: calibration does not take one; a call that is cached by the plan may"
            )
        if name in ("num_images_per_prompt", "num_videos_per_prompt"):
            raise ValueError(f"{name}: a plan serves any number; leave it out")
        if name not in parameters and not _takes(kind, name):
            hint = _hint(name, [*parameters][1:])
            raise ValueError(f"{kind.__name__} takes no argument {name!r}{hint}")


def _takes(kind: type, name: str) -> bool:
    """Return whether a pipeline takes an argument that its signature does not name.

    Those of diffusers that take any keyword read a few old names and ignore all others.
    """
    call = inspect.unwrap(kind.__call__)
    parameters = inspect.signature(call).parameters.values()
    if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
        return False
    return not call.__module__.startswith("diffusers.") or f'"{name}"' in inspect.getsource(call)


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def load_pipeline(
    path: str | os.PathLike, dtype: str, device: str | None = None, low_memory: bool = False,
    pipeline: str | None = None,
) -> Any:  # fmt: skip
    """Return a diffusers pipeline, quiet and ready on `device`.

    Args:
        path: of the pipeline's folder, or its id on the Hugging Face hub.
        dtype: of its weights.
        device: by default `default_device`.
        low_memory: whether each model is moved there when it is called, and back to main memory
            when the next one is (diffusers' `enable_model_cpu_offload`).
        pipeline: its class, as for `pipeline_class`.

    Raises:
        OSError, ValueError: a file is missing or unreadable, or as `pipeline_class` says.
    """
    device = device or default_device()  # an error, if it is one, before loading
    pipe = pipeline_class(path, pipeline).from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=_is_folder(path), use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    if not low_memory:
        return pipe.to(device)
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def image_seed(seed: int, index: int) -> int:
    """Return the seed of an image's noise: a function of (experiment seed, prompt index) alone."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # torch takes 63 bits from a signed integer


def sample(
    pipe: Any, call: Mapping[str, Any], seed: int, plan: Plan | None = None,
    anchor_device: str | None = None,
) -> Sample:  # fmt: skip
    """Return one image or video.

    Args:
        pipe: from `load_pipeline`, without a cache.
        call: the arguments of the pipeline's call: the prompt, `num_inference_steps` ...
        seed: of the noise, from `image_seed`.
        plan: what to sample by; None computes every step.
        anchor_device: where a cache keeps features; by default where they are made.
    """
    device = device_of(pipe)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with quiet(pipe), cached(pipe, plan, anchor_device) if plan else watched(pipe) as stats:
        made = called(pipe, call, seed, "pil")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        decoded = stats.since_loop()
    return Sample(frames_of(made), stats.full, stats.loop_seconds, decoded, _peak_memory_mb(device))


def frames_of(made: Any) -> list[Image.Image]:
    """Return the frames of what a pipeline made for its first prompt; one, if it is an image.

    Raises:
        ValueError: it has neither images nor frames.
    """
    found = pictures_of(made)
    if found is None:
        raise ValueError(f"{type(made).__name__} has neither images nor frames")
    first = found[0]
    video = isinstance(first, list | tuple) or (isinstance(first, np.ndarray) and first.ndim == 4)
    return [_rgb(frame) for frame in (first if video else [first])]


def _rgb(frame: Any) -> Image.Image:
    """Return a frame, an array or a picture of PIL in any mode, as RGB."""
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(eight_bit(frame))
    return picture.convert("RGB")


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

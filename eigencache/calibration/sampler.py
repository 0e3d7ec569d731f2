"""Sampling one image with a diffusers pipeline: its noise, its text, its time.

What is resident on the device when, of a pipeline from `load_encoded`:

    while prompts are encoded   the text encoders alone; their embeddings go to main memory
    while images are sampled    the transformer and the VAE; no text encoder is left anywhere
    with low memory             the transformer while it denoises, then the VAE while it decodes;
                                the other waits in main memory, and moves once an image
"""

import gc
import os
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import empty_device_cache, get_module_execution_device
from PIL import Image

from eigencache._device import default_device

# The components of a pipeline that encode prompts, and those that make images.
TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
IMAGE = ("transformer", "vae")


@dataclass(frozen=True)
class Settings:
    """How a pipeline is called; the names are those of its arguments.

    Attributes:
        num_steps: sampler steps of the full run (`num_inference_steps`).
        height, width: of the image, in pixels.
        guidance_scale: embedded guidance; read by guidance-distilled models only.
        true_cfg_scale: of classifier-free guidance by two network calls a step, the second with
            the empty prompt; 1 is one call without.
        max_sequence_length: tokens of the long text encoder.
        dtype: of the weights and features: "float32", "bfloat16" or "float16".
    """

    num_steps: int = 50
    height: int = 1024
    width: int = 1024
    guidance_scale: float = 3.5
    true_cfg_scale: float = 1.0
    max_sequence_length: int = 512
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Sample:
    """An image and what it cost.

    Attributes:
        image: RGB, 8 bits.
        seconds: of the denoising loop alone, from the first call of the transformer to the end of
            the last scheduler step.
        decode_seconds: from there to the image.
        peak_memory_mb: megabytes (1e6 bytes); on a GPU the peak allocated while this image was
            made, on a CPU the process's high-water mark so far.
    """

    image: Image.Image
    seconds: float
    decode_seconds: float
    peak_memory_mb: float


def load_pipeline(
    path: str | os.PathLike, dtype: str, device: str | None = None, low_memory: bool = False,
    without: Iterable[str] = (),
) -> Any:  # fmt: skip
    """Return the diffusers pipeline in the folder `path`, quiet and ready on `device`.

    Args:
        path: of the pipeline.
        dtype: of its weights.
        device: by default `default_device`.
        low_memory: whether each model is moved there when it is called, and back to main memory
            when the next one is (diffusers' `enable_model_cpu_offload`).
        without: names of components that are not loaded.

    Raises:
        OSError: a file is missing or unreadable.
    """
    device = device or default_device()  # an error, if it is one, before loading
    pipe = DiffusionPipeline.from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True,
        **dict.fromkeys(without),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if not low_memory:
        return pipe.to(device)
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def load_encoded(
    path: str | os.PathLike, prompts: Iterable[str], settings: Settings, low_memory: bool = False
) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """Return a pipeline without its text encoders, and what they made of prompts.

    The text encoders are loaded alone, encode every prompt and are freed; then the transformer and
    the VAE are loaded. So neither the device nor main memory ever holds both.

    Args:
        path: of the pipeline.
        prompts: to encode.
        settings: how the pipeline will be called.
        low_memory: whether the transformer and the VAE take turns on the device.

    Returns:
        The pipeline, and the embeddings of each prompt as from `encode`.

    Raises:
        OSError: a file is missing or unreadable.
    """
    encoders = load_pipeline(path, settings.dtype, without=IMAGE)
    texts = [encode(encoders, prompt, settings) for prompt in prompts]
    device = encoders.device.type
    del encoders
    gc.collect()
    empty_device_cache(device)
    return load_pipeline(path, settings.dtype, low_memory=low_memory, without=TEXT), texts


def device_of(pipe: Any) -> torch.device:
    """Return the device where the pipeline computes, wherever its weights wait."""
    return get_module_execution_device(pipe.transformer)


def image_seed(seed: int, index: int) -> int:
    """Return the seed of an image's noise: a function of (experiment seed, prompt index) alone."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # torch takes 63 bits from a signed integer


@torch.no_grad()
def encode(pipe: Any, prompt: str, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the text embeddings of one prompt, on the CPU, as keyword arguments of the pipeline.

    Args:
        pipe: from `load_pipeline`, with its text encoders.
        prompt: to encode.
        settings: how the pipeline will be called.
    """
    text: dict[str, torch.Tensor] = {}
    for sign, words in {"": prompt, "negative_": ""}.items():
        if not sign or settings.true_cfg_scale > 1:
            embeds, pooled, _ = pipe.encode_prompt(
                prompt=words, prompt_2=None, max_sequence_length=settings.max_sequence_length
            )
            text |= {f"{sign}prompt_embeds": embeds, f"{sign}pooled_prompt_embeds": pooled}
    return {name: tensor.cpu() for name, tensor in text.items()}


def together(texts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the embeddings of several prompts, each from `encode`, as those of one batch."""
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}


def call(
    pipe: Any, text: dict[str, torch.Tensor], settings: Settings,
    seeds: Sequence[int], num_steps: int | None = None, **options: object,
) -> Any:  # fmt: skip
    """Return what the pipeline makes of a batch, its `images`.

    Args:
        pipe: from `load_pipeline`.
        text: from `encode`, or `together`.
        settings: how to call the pipeline.
        seeds: of the noise of each image, from `image_seed`. The noise is drawn on the CPU, so
            that it is the same on every device.
        num_steps: sampler steps; by default those of the settings.
        options: other arguments of the pipeline.
    """
    device = device_of(pipe)
    return pipe(
        **{name: tensor.to(device) for name, tensor in text.items()},
        num_inference_steps=num_steps or settings.num_steps,
        height=settings.height,
        width=settings.width,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **options,
    ).images


def sample(
    pipe: Any, text: dict[str, torch.Tensor], settings: Settings, seed: int,
    num_steps: int | None = None,
) -> Sample:  # fmt: skip
    """Return one image, sampled in `num_steps` steps (by default those of the settings).

    Args:
        pipe: from `load_pipeline`; a cache may be enabled on its transformer.
        text: from `encode`.
        settings: how to call the pipeline.
        seed: of the noise, from `image_seed`.
        num_steps: sampler steps.
    """
    marks: dict[str, float] = {}
    device = device_of(pipe)

    def mark(name: str) -> None:
        if name not in marks:
            _synchronize(device)
            marks[name] = time.perf_counter()

    def at_step_end(pipe: Any, step: int, timestep: object, tensors: dict) -> dict:
        if step == pipe.num_timesteps - 1:
            mark("denoised")
        return {}

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if hasattr(pipe.transformer, "_hf_hook"):  # with low memory: it shall not move while timed
        pipe.transformer._hf_hook.pre_forward(pipe.transformer)
    start = pipe.transformer.register_forward_pre_hook(lambda module, args: mark("begun"))
    try:
        image = call(
            pipe, text, settings, [seed], num_steps, callback_on_step_end=at_step_end,
            callback_on_step_end_tensor_inputs=[],
        )[0]  # fmt: skip
    finally:
        start.remove()
    mark("decoded")
    return Sample(
        image,
        marks["denoised"] - marks["begun"],
        marks["decoded"] - marks["denoised"],
        _peak_memory_mb(device),
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

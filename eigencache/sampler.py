"""Sampling one image with a diffusers pipeline: its noise, its text, its time."""

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image


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


def default_device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_pipeline(path: str | os.PathLike, dtype: str, device: str | None = None):
    """Return the diffusers pipeline in the folder `path`, quiet and ready on `device`.

    Raises:
        OSError: a file is missing or unreadable.
    """
    pipe = DiffusionPipeline.from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or default_device())


def image_seed(seed: int, index: int) -> int:
    """Return the seed of an image's noise: a function of (experiment seed, prompt index) alone."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # torch takes 63 bits from a signed integer


@torch.no_grad()
def encode(pipe, prompt: str, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the text embeddings of one prompt, as keyword arguments of the pipeline."""
    text = {}
    for sign, words in {"": prompt, "negative_": ""}.items():
        if not sign or settings.true_cfg_scale > 1:
            embeds, pooled, _ = pipe.encode_prompt(
                prompt=words, prompt_2=None, max_sequence_length=settings.max_sequence_length
            )
            text |= {f"{sign}prompt_embeds": embeds, f"{sign}pooled_prompt_embeds": pooled}
    return text


def together(texts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the embeddings of several prompts, each from `encode`, as those of one batch."""
    return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}


def call(
    pipe, text: dict[str, torch.Tensor], settings: Settings, seeds: Sequence[int],
    num_steps: int | None = None, **options,
):  # fmt: skip
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
    return pipe(
        **text,
        num_inference_steps=num_steps or settings.num_steps,
        height=settings.height,
        width=settings.width,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **options,
    ).images


def sample(
    pipe, text: dict[str, torch.Tensor], settings: Settings, seed: int, num_steps: int | None = None
) -> Sample:
    """Return one image, sampled in `num_steps` steps (by default those of the settings).

    Args:
        pipe: from `load_pipeline`; a cache may be enabled on its transformer.
        text: from `encode`.
        settings: how to call the pipeline.
        seed: of the noise, from `image_seed`.
        num_steps: sampler steps.
    """
    marks = {}

    def mark(name: str) -> None:
        if name not in marks:
            _synchronize(pipe)
            marks[name] = time.perf_counter()

    def at_step_end(pipe, step, timestep, tensors):
        if step == pipe.num_timesteps - 1:
            mark("denoised")
        return {}

    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pipe.device)
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
        _peak_memory_mb(pipe),
    )


def _synchronize(pipe) -> None:
    if pipe.device.type == "cuda":
        torch.cuda.synchronize(pipe.device)


def _peak_memory_mb(pipe) -> float:
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated(pipe.device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

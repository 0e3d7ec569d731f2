"""A trained model samples nearer to its full run by a built-in plan than by fewer steps."""

import pytest
import torch
from diffusers import FluxPipeline
from helpers import ROOT

import eigencache
from eigencache import built_in
from eigencache.metrics._psnr import psnr
from eigencache.metrics.images import pixels

PROMPTS = ["a red apple on a blue background", "a fox on a pink background"]
SIZE = {"height": 64, "width": 64, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def pipe():
    pipe = FluxPipeline.from_pretrained(ROOT / "data/emoji-flux", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, steps, **arguments):
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    made = pipe(PROMPTS, num_inference_steps=steps, generator=noise, **SIZE, **arguments)
    return [pixels(image) for image in made.images]


def decibels(made, full):
    return sum(psnr(one, other) for one, other in zip(made, full, strict=True)) / len(full)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "full_steps", "guidance", "above"), [(50, 7, 1, 5), (28, 9, 1, 5), (28, 7, 3, 2)]
)
def test_it_beats_fewer_steps_without_the_models_own_kernel(
    pipe, monkeypatch, steps, full_steps, guidance, above
):
    others = tuple(s for s in built_in.sources() if s.model != "emoji-flux")
    monkeypatch.setattr(built_in, "sources", lambda: others)
    guided = {"true_cfg_scale": guidance, "negative_prompt": ["", ""]} if guidance > 1 else {}
    full = images(pipe, steps, **guided)
    fewer = decibels(images(pipe, full_steps, **guided), full)
    with eigencache.cached(pipe, full_steps=full_steps) as stats:
        cached = decibels(images(pipe, steps, **guided), full)
    assert (stats.full, stats.skipped) == (full_steps, steps - full_steps)
    assert cached > fewer + above

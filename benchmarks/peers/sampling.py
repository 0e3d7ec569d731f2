"""How FluxPipeline is called, for quality, for time and for fitting alike."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from eigencache.calibration.sampler import image_seed

# What an image depends on, besides the model: the arguments that are its own, and the seed of its
# noise.
Case = tuple[dict[str, Any], int]
Arguments = Mapping[str, Any]  # those of every call
STEPS = "num_inference_steps"


def cases_of(prompts: list[str], seed: int) -> list[Case]:
    """Return the prompt and the seed of every image."""
    return [({"prompt": p}, image_seed(seed, index)) for index, p in enumerate(prompts)]


def call(pipe, cases: list[Case], arguments: Arguments, num_steps: int | None, **options):
    """Return what the pipeline makes of some cases in one batch."""
    texts, seeds = zip(*cases, strict=True)
    own = {name: [text[name] for text in texts] for name in texts[0]}
    own = {k: torch.cat(v) if isinstance(v[0], torch.Tensor) else v for k, v in own.items()}
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    made = {**arguments, **({STEPS: num_steps} if num_steps else {}), **own}
    return pipe(**made, generator=noise, **{"output_type": "pt"} | options).images


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer, FLUX's second kind behind the first."""
    single = getattr(transformer, "single_transformer_blocks", ())
    return [*transformer.transformer_blocks, *single]


def middle(transformer: nn.Module) -> nn.Module:
    """Return a part of a transformer that runs if and only if its middle block is computed.

    A block's own hooks would also see the calls that a cache answers. The query projection of its
    attention runs if the attention is computed.
    """
    blocks = blocks_of(transformer)
    block = blocks[len(blocks) // 2]
    return (block.attn if hasattr(block, "attn") else block.attn1).to_q

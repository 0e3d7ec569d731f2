"""Parameters and operations of a full step of every model that has a configuration.

    python -m benchmarks.models

writes data/benchmarks/models.csv. Nothing is downloaded or computed: each network is built on
torch's meta device, as its public config.json describes it where that differs from the class's
defaults in diffusers, and called with the shapes of `workflow/config/`. The seconds are estimates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

TABLE = Path("data/benchmarks/models.csv")
PEAK, SHARE = 989e12, 0.4  # of an H100 in bfloat16, and what FLUX.1-dev reaches of it
XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35 = {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}  # fmt: skip
KLEIN = {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
WAN_5B = {
    "num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48,
    "out_channels": 48,
}  # fmt: skip


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


@dataclass(frozen=True)
class Step:
    """A full step: a network, what it is called with, and how often.

    Attributes:
        name: the network's class in diffusers.
        inputs: the arguments of one call; what is positional comes first, as a tuple under "".
        config: where it differs from the class's defaults.
        passes: calls in a step; two where guidance takes one of its own.
    """

    name: str
    inputs: Callable[[], dict[str, Any]]
    config: dict[str, Any]
    passes: int = 1

    def counted(self) -> tuple[int, int]:
        """Return the network's parameters and the operations of a step."""
        with torch.device("meta"):
            network = getattr(diffusers, self.name)(**self.config).to(torch.bfloat16).eval()
        inputs = self.inputs()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*inputs.pop("", ()), **inputs, return_dict=False)
        parameters = sum(weight.numel() for weight in network.parameters())
        return parameters, self.passes * counter.get_total_flops()


def flux(tokens: int, texts: int = 512, guidance: bool = True) -> Step:
    return Step(
        "FluxTransformer2DModel",
        lambda: {
            "hidden_states": empty(1, tokens, 64),
            "encoder_hidden_states": empty(1, texts, 4096),
            "pooled_projections": empty(1, 768),
            "timestep": empty(1),
            "img_ids": empty(tokens, 3),
            "txt_ids": empty(texts, 3),
            "guidance": empty(1) if guidance else None,
        },
        {"guidance_embeds": guidance},
    )


def flux2(width: int, config: dict[str, Any]) -> Step:
    tokens, texts = 64 * 64, 512
    return Step(
        "Flux2Transformer2DModel",
        lambda: {
            "hidden_states": empty(1, tokens, 128),
            "encoder_hidden_states": empty(1, texts, width),
            "timestep": empty(1),
            "img_ids": empty(1, tokens, 4),
            "txt_ids": empty(1, texts, 4),
            "guidance": empty(1) if config.get("guidance_embeds", True) else None,
        },
        config,
    )


def qwen(*shapes: tuple[int, int, int]) -> Step:
    tokens = sum(frames * height * width for frames, height, width in shapes)
    return Step(
        "QwenImageTransformer2DModel",
        lambda: {
            "hidden_states": empty(1, tokens, 64),
            "encoder_hidden_states": empty(1, 64, 3584),  # a prompt of 64 tokens
            "timestep": empty(1),
            "img_shapes": [list(shapes)],
        },
        {},
        passes=2,
    )


def wan(channels: int, frames: int, height: int, width: int, config: dict[str, Any]) -> Step:
    return Step(
        "WanTransformer3DModel",
        lambda: {
            "hidden_states": empty(1, channels, frames, height, width),
            "timestep": empty(1),
            "encoder_hidden_states": empty(1, 512, 4096),
        },
        config,
        passes=2,
    )


STEPS = {
    "flux-dev": flux(64 * 64),
    "flux-schnell": flux(64 * 64, 256, guidance=False),
    "flux-kontext": flux(2 * 47 * 87),  # of the image and of the one that is edited
    "flux2-dev": flux2(15360, {}),
    "flux2-klein-4b": flux2(7680, KLEIN),
    "qwen-image": qwen((1, 83, 83)),
    "qwen-image-edit": qwen((1, 48, 86), (1, 48, 86)),
    "z-image": Step(
        "ZImageTransformer2DModel",
        lambda: {"": ([empty(16, 1, 160, 90)], empty(1), [empty(128, 2560)])},
        {},
        passes=2,
    ),
    "sd35-large": Step(
        "SD3Transformer2DModel",
        lambda: {
            "hidden_states": empty(2, 16, 128, 128),  # guidance doubles the batch
            "encoder_hidden_states": empty(2, 333, 4096),
            "pooled_projections": empty(2, 2048),
            "timestep": empty(2),
        },
        SD35,
    ),
    "sdxl": Step(
        "UNet2DConditionModel",
        lambda: {
            "": (empty(2, 4, 128, 128), empty(2)),
            "encoder_hidden_states": empty(2, 77, 2048),
            "added_cond_kwargs": {"text_embeds": empty(2, 1280), "time_ids": empty(2, 6)},
        },
        XL,
    ),
    "wan22-ti2v-5b": wan(48, 31, 44, 80, WAN_5B),
    "wan22-t2v-a14b": wan(16, 21, 90, 160, {}),
}


def table() -> pd.DataFrame:
    """Return a row for every configuration."""
    rows = []
    for name, step in STEPS.items():
        parameters, operations = step.counted()
        rows.append(
            {
                "configuration": name,
                "network": step.name,
                "parameters": parameters,
                "tflop_per_step": round(operations / 1e12, 1),
                "estimated_h100_seconds": float(f"{operations / (SHARE * PEAK):.2g}"),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table().to_csv(TABLE, index=False)

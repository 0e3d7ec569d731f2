"""Tiny stand-ins of published models: whole folders of a pipeline, with text encoders.

`save(NAME, folder)` writes a pipeline of the same class as the model of that name in
`data/models.tsv`, with random weights. A stage loads it as it would load the model.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers as hf

from .zoo import flux, image, stable, video
from .zoo.parts import seeded

ROOT = Path(__file__).parents[2]
_EMOJI = ROOT / "data/emoji-flux"
_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
_CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
_PARTS = (
    "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}"
)
_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
]  # fmt: skip


def _bytes(template: str) -> hf.PreTrainedTokenizerBase:
    """Return a tokenizer with a token for each byte, as Qwen's has them, and its special ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = [*sorted(ByteLevel.alphabet()), *_SPECIAL]
    tokenizer = hf.Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL, model_max_length=2048,
    )  # fmt: skip
    tokenizer.chat_template = template
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    return tokenizer


def _clip(size: int, projection: int | None = None) -> dict:
    """Return a CLIP's tokenizer and text encoder, whose pooled text has the width `projection`."""
    tokenizer = hf.AutoTokenizer.from_pretrained(_EMOJI / "tokenizer")
    config = hf.CLIPTextConfig(
        hidden_size=size, projection_dim=projection or size, vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **_SMALL,
    )  # fmt: skip
    kind = hf.CLIPTextModelWithProjection if projection else hf.CLIPTextModel
    return {"tokenizer": tokenizer, "text_encoder": kind(config).eval()}


def _t5(kind: str = "T5", size: int = 12) -> dict:
    tokenizer = hf.AutoTokenizer.from_pretrained(_EMOJI / "tokenizer_2")
    config = getattr(hf, f"{kind}Config")(
        d_model=size, d_kv=6, d_ff=8, num_layers=1, num_heads=2, vocab_size=len(tokenizer)
    )
    encoder = getattr(hf, f"{kind}EncoderModel")(config).eval()
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def _qwen3(size: int, layers: int) -> dict:
    tokenizer = _bytes(_CHAT)
    config = hf.Qwen3Config(
        hidden_size=size, head_dim=4, num_key_value_heads=2, vocab_size=len(tokenizer),
        **_SMALL | {"num_hidden_layers": layers},
    )  # fmt: skip
    return {"tokenizer": tokenizer, "text_encoder": hf.Qwen3ForCausalLM(config).eval()}


def _qwen_vl(sees: bool = False) -> dict:
    """Return Qwen 2.5 VL; with `sees` its processor of images too."""
    tokenizer = _bytes(_CHAT)
    number = tokenizer.convert_tokens_to_ids
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 12, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]
            },
            **_SMALL,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 8, "num_heads": 2,
            "out_hidden_size": 12, "fullatt_block_indexes": [0],
        },
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": hf.Qwen2_5_VLForConditionalGeneration(config).eval(),
    }
    if sees:
        size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
        parts["processor"] = hf.Qwen2VLProcessor(
            image_processor=hf.Qwen2VLImageProcessor(size=size), tokenizer=tokenizer,
            video_processor=hf.Qwen2VLVideoProcessor(size=size), chat_template=_CHAT,
        )  # fmt: skip
    return parts


def _mistral(size: int, layers: int) -> dict:
    tokenizer = _bytes(_PARTS)
    config = hf.Mistral3Config(
        text_config={
            "model_type": "mistral", "hidden_size": size, "head_dim": 4,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            **_SMALL | {"num_hidden_layers": layers},
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1, "image_size": 16,
            "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 8, "head_dim": 4,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(), tokenizer=tokenizer, chat_template=_PARTS
    )
    return {
        "tokenizer": processor,
        "text_encoder": hf.Mistral3ForConditionalGeneration(config).eval(),
    }


def _second(parts: dict, number: int = 2) -> dict:
    return {f"{name}_{number}": part for name, part in parts.items()}


def _flux(**arguments):
    return flux.flux(**arguments)[0], _clip(10) | _second(_t5())


def _sd35():
    clips = _clip(6, 5) | _second(_clip(6, 5))
    return stable.sd3()[0], clips | _second(_t5(), 3)


def _sdxl():
    pipe = stable.CASES["sdxl"]()[0]
    return pipe, _clip(6) | _second(_clip(6, 10))


def _klein():
    pipe = flux.CASES["flux2-klein"]()[0]
    pipe.register_to_config(is_distilled=True)
    return pipe, _qwen3(4, 28)


def _qwen_edit():
    # It makes images of a megapixel, whatever it is asked for; in this process, of 16 pixels.
    return image.qwen_edit()[0], _qwen_vl(sees=True)


STAND_INS: dict[str, Callable] = {
    "FLUX.1-dev": _flux,
    "FLUX.1-schnell": partial(_flux, guidance=False, kind="euler"),
    "FLUX.1-Kontext-dev": partial(_flux, cls="FluxKontextPipeline"),
    "FLUX.2-dev": lambda: (flux.flux2()[0], _mistral(4, 31)),
    "FLUX.2-klein-4B": _klein,
    "Qwen-Image": lambda: (image.qwen()[0], _qwen_vl()),
    "Qwen-Image-Edit": _qwen_edit,
    "Z-Image": lambda: (image.z_image()[0], _qwen3(12, 2)),
    "SD3.5-large": _sd35,
    "SDXL": _sdxl,
    "Wan2.2-TI2V-5B": lambda: (video.wan_5b()[0], _t5("UMT5")),
    "Wan2.2-T2V-A14B": lambda: (video.CASES["wan22"]()[0], _t5("UMT5")),
}


def save(name: str, folder: Path) -> None:
    """Write the stand-in of a model of data/models.tsv into a folder."""

    @seeded
    def built():
        pipe, parts = STAND_INS[name]()
        pipe.register_modules(**parts)
        return pipe

    torch.set_num_threads(1)
    built().save_pretrained(folder)

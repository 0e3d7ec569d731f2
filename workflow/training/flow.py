"""The flow transformer of emoji-flux with its two text encoders, and the FluxPipeline they make.

Everything has FLUX.1-dev's form: latents are packed 2 x 2 into tokens of 64 channels, a T5 encoder
gives one vector per word, a CLIP text encoder one vector per caption, and the transformer predicts
``noise - latent`` at ``(1 - t) latent + t noise``. All three are trained from nothing, together, by
that one loss, with a tenth of the captions empty. The guidance embedding stays without effect until
``distil``.
"""

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer, T5Tokenizer

from training import attention, data, steps, text, vae

EMPTY_SHARE = 0.1  # captions that are dropped, so that the model knows pictures without a caption
WARM_UP, WARM_UP_AGAIN = 0.02, 0.08  # share of a training, from nothing and from given weights
PRECISE = ("transformer.time_text_embed",)  # times lose too much in bfloat16


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``(b, 16, h, w)`` to tokens ``(b, h / 2 * w / 2, 64)``."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def positions(size: int, device: torch.device) -> torch.Tensor:
    """Positions ``(24 + tokens, 3)`` of caption tokens, then of picture tokens; ``size`` in px."""
    side = size // 16
    of_picture = FluxPipeline._prepare_latent_image_ids(1, side, side, device, torch.float32)
    return torch.cat([torch.zeros(text.TOKENS, 3, device=device), of_picture])


def build_transformer(single: int = 8) -> FluxTransformer2DModel:
    """A fresh flow transformer: two double and eight single blocks of width 192.

    Modulations, the last layer and the guidance embedding start at zero, so that every block starts
    as the identity and guidance has no effect.
    """
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    for name, layer in model.named_modules():
        modulates = "norm" in name and name.endswith(".linear")
        if name == "proj_out" or modulates or name.endswith("guidance_embedder.linear_2"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def velocity(
    transformer: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    guidance: torch.Tensor,
    words: torch.Tensor,
    pooled: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """What ``transformer.forward`` gives; times are embedded in float32, positions are fixed.

    Latents ``(b, tokens, 64)``, times and guidance ``(b,)``, words ``(b, 24, 128)``, pooled
    ``(b, 128)``, rotary embeddings from ``transformer.pos_embed``; returns float32
    ``(b, tokens, 64)``. A bfloat16 transformer's own forward rounds its times to bfloat16.
    """
    dtype = transformer.x_embedder.weight.dtype
    embedding = transformer.time_text_embed(times * 1000, guidance * 1000, pooled.float()).to(dtype)
    hidden = transformer.x_embedder(latents.to(dtype))
    context = transformer.context_embedder(words.to(dtype))
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        context, hidden = block(
            hidden_states=hidden,
            encoder_hidden_states=context,
            temb=embedding,
            image_rotary_emb=rotary,
        )
    return transformer.proj_out(transformer.norm_out(hidden, embedding)).float()


class FlowModel(nn.Module):
    """Transformer and text encoders as one module."""

    def __init__(self, tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer, single: int = 8):
        super().__init__()
        self.transformer = build_transformer(single)
        self.text_encoder, self.text_encoder_2 = text.build_encoders(tokenizer, tokenizer_2)
        attention.write_out(self.transformer, self.text_encoder, self.text_encoder_2)

    def encode(self, ids: torch.Tensor, ids_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Words ``(b, 24, 128)`` and pooled vectors ``(b, 128)`` of token ids ``(b, 24)``."""
        words = attention.words_of(self.text_encoder_2, ids_2)
        return words, attention.pooled_of(self.text_encoder, ids)


def compile_blocks(model: FlowModel) -> None:
    """Compile the transformer's blocks; blocks of one kind share their code."""
    transformer = model.transformer
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.compile(fullgraph=True, dynamic=False)


def draw_times(count: int, device: torch.device) -> torch.Tensor:
    """Logit-normal times in (0, 1), a little towards noise, as the sampler's shifted steps are."""
    return torch.sigmoid(0.4 + 1.2 * torch.randn(count, device=device))


class Pool:
    """Packed latents of painted pictures, with the tokens of their captions, on the device."""

    def __init__(
        self,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        ids: torch.Tensor,
        ids_2: torch.Tensor,
        empty: tuple[torch.Tensor, torch.Tensor],
    ):
        """Mean and deviation ``(n, tokens, 64)``, ids ``(n, 24)``; ``empty`` are ``(1, 24)``."""
        self.mean, self.deviation = mean, deviation
        self.ids, self.ids_2, self.empty = ids, ids_2, empty

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        autoencoder: AutoencoderKL,
        painter: data.Painter,
        scenes: data.Scenes,
        parts: tuple[text.Parts, text.Parts],
        count: int,
        dtype: torch.dtype,
    ) -> "Pool":
        """Paint and encode ``count`` fresh pictures, half of them of two things."""
        encoder = vae.for_computing(autoencoder, dtype)
        shift, scale = autoencoder.config.shift_factor, autoencoder.config.scaling_factor
        batch = min(256, count)
        side = painter.size // 16
        mean = torch.empty(count, side * side, 64, dtype=dtype, device=painter.device)
        deviation, captions = torch.empty_like(mean), []
        for start in range(0, count, batch):
            size = min(batch, count - start)
            ones = size // 2
            rows = scenes.draw(ones, size - ones)
            middle, spread = vae.moments(encoder, data.paint(painter, rows, ones))
            mean[start : start + size] = pack((middle - shift) * scale)
            deviation[start : start + size] = pack(spread * scale)
            captions.append(rows)
        ids, ids_2 = (part.ids(torch.cat(captions)) for part in parts)
        nothing = torch.tensor(
            [[len(table) - 1 for table in parts[0].tables]], device=painter.device
        )
        return cls(mean, deviation, ids, ids_2, tuple(part.ids(nothing) for part in parts))

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw latents ``(count, tokens, 64)``, float32, and both kinds of ids ``(count, 24)``."""
        chosen = torch.randint(len(self.mean), (count,), device=self.mean.device)
        mean, deviation = self.mean[chosen].float(), self.deviation[chosen].float()
        latents = mean + deviation * torch.randn_like(mean)
        return latents, self.ids[chosen], self.ids_2[chosen]


def tokens_loss(
    model: FlowModel,
    latents: torch.Tensor,
    noise: torch.Tensor,
    times: torch.Tensor,
    ids: tuple[torch.Tensor, torch.Tensor],
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Flow-matching loss of a batch, a scalar; latents and noise ``(b, tokens, 64)``."""
    mixed = torch.lerp(latents, noise, times[:, None, None])
    guidance = torch.ones_like(times)
    predicted = velocity(model.transformer, mixed, times, guidance, *model.encode(*ids), rotary)
    return functional.mse_loss(predicted, noise - latents)


class HeldOutLoss:
    """The loss on held-out pictures, with the same noise and times at every call."""

    def __init__(self, pool: Pool, rotary: tuple[torch.Tensor, torch.Tensor], batch: int = 256):
        torch.manual_seed(12345)
        self.rotary, self.batches = rotary, []
        for _ in range(2):
            latents, ids, ids_2 = pool.draw(min(batch, len(pool.mean)))
            times = draw_times(len(latents), latents.device)
            self.batches.append((latents, torch.randn_like(latents), times, (ids, ids_2)))

    @torch.no_grad()
    def __call__(self, model: FlowModel) -> float:
        """Mean loss of the batches."""
        losses = [tokens_loss(model, *batch, self.rotary) for batch in self.batches]
        return torch.stack(losses).mean().item()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's scheduler settings."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def pipeline_of(
    model: FlowModel,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    tokenizer_2: T5Tokenizer,
) -> FluxPipeline:
    """The model as a FluxPipeline."""
    pipeline = FluxPipeline(
        scheduler=scheduler(),
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=model.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: FluxPipeline, path: Path) -> None:
    """Save the pipeline as a directory, whole or not at all; the large parts in float16.

    The text encoders stay float32, since transformers loads a model in the dtype of its file and
    diffusers in float32: so a plain `from_pretrained` gives one dtype.
    """
    large = ("transformer", "vae")
    parts = {
        name: copy.deepcopy(part).half() if name in large else part
        for name, part in pipeline.components.items()
    }
    beside = path.with_name(path.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    FluxPipeline(**parts).save_pretrained(beside, safe_serialization=True)
    for config in beside.glob("*/config.json"):
        # A path of the machine it was trained on has no place in a shipped model.
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("_name_or_path", None)
        steps.write_json(config, content)
    steps.replace_directory(beside, path)


def sample(
    pipeline: FluxPipeline,
    captions: list[str],
    step_count: int,
    seed: int = 0,
    guidance: float = 3.5,
    size: int = data.SIZE,
    batch: int = 64,
) -> torch.Tensor:
    """One picture per caption, through FluxPipeline; float32 ``(n, 3, size, size)`` in [-1, 1].

    Picture i starts from the noise of seed ``seed + i``, drawn on the CPU.
    """
    pictures = []
    for start in range(0, len(captions), batch):
        lines = captions[start : start + batch]
        pictures.append(
            pipeline(
                lines,
                height=size,
                width=size,
                num_inference_steps=step_count,
                max_sequence_length=text.TOKENS,
                guidance_scale=guidance,
                generator=[
                    torch.Generator().manual_seed(seed + start + place)
                    for place in range(len(lines))
                ],
                output_type="pt",
            ).images.float()
        )
    return torch.cat(pictures) * 2 - 1


def train(
    pool: Pool,
    held_out: Pool,
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer],
    out: Path,
    budget_of: callable,
    size: int = data.SIZE,
    batch: int = 512,
    rate: float = 1.5e-3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    graph: bool = False,
    compiles: bool = False,
    begin: FlowModel | None = None,
    earlier: dict | None = None,
) -> tuple[FlowModel, dict]:
    """Train transformer and text encoders; returns the averaged model and the report.

    A new training goes on from the weights of ``begin``; the rate then rises more slowly, since the
    optimizer knows nothing yet, and ``earlier``, how they were trained, goes to the report.
    """
    device = pool.mean.device
    torch.manual_seed(seed)
    trainee = steps.Trainee(
        (begin or FlowModel(*tokenizers)).to(device),
        dtype,
        decay=0.999,
        frozen=("transformer.time_text_embed.guidance_embedder",),
        precise=PRECISE,
    )
    checkpoint = out / "flow.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)
    rotary = trainee.model.transformer.pos_embed(positions(size, device))
    measure = HeldOutLoss(held_out, rotary)
    empty, empty_2 = pool.empty

    def loss(worker: FlowModel) -> torch.Tensor:
        latents, ids, ids_2 = pool.draw(batch)
        dropped = torch.rand(batch, 1, device=device) < EMPTY_SHARE
        ids, ids_2 = torch.where(dropped, empty, ids), torch.where(dropped, empty_2, ids_2)
        noise, times = torch.randn_like(latents), draw_times(batch, device)
        return tokens_loss(worker, latents, noise, times, (ids, ids_2), rotary)

    if compiles:
        compile_blocks(trainee.worker)
        torch.autograd.grad(loss(trainee.worker), trainee.working)
        steps.say("flow: blocks are compiled")
    steps.train(
        trainee,
        loss,
        budget_of(trainee.elapsed),  # what was compiled above is not training
        rate,
        "flow",
        checkpoint,
        seed=seed,
        graph=graph,
        warm_up=WARM_UP_AGAIN if begin else WARM_UP,
        look=lambda: {"held_out_loss": measure(trainee.average)},
    )
    model = trainee.average.eval()
    report = {
        "iterations": trainee.iteration,
        "batch": batch,
        "pool": len(pool.mean),
        "minutes": trainee.elapsed / 60,
        "peak_rate": rate,
        "device": vae.device_name(device),
        "parameters": {
            name: sum(weight.numel() for weight in part.parameters())
            for name, part in model.named_children()
        },
        "held_out_loss": measure(model),
        "jitter": data.JITTER,
        "earlier": earlier or {},
        "history": trainee.history,
    }
    steps.write_json(out / "flow.json", report)
    return model, report

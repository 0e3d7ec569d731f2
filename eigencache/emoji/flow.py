"""Train the flow transformer of emoji-flux and its two text encoders; write a FluxPipeline.

Everything has FLUX.1's form: latents are packed 2 x 2 into tokens of 64 channels, a T5 encoder
gives one vector per word, a CLIP text encoder one vector per caption, and the transformer predicts
``noise - latent`` at ``(1 - t) latent + t noise``.  All three are trained from nothing, together,
by that one loss.  Packing, positions and the convention for ``t`` are FluxPipeline's own.
"""

import argparse
import copy
import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from eigencache.emoji import data, training

TOKENS = 16  # caption tokens, padded, in both encoders
TEXT_WIDTH = 128


def build_clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Byte-pair tokenizer in CLIP's form, trained until every word of the captions is one token."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted({letter for line in captions for letter in line if letter != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=special,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trainee.train_from_iterator(captions, trainer)
    trained = training.json_of(trainee)["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=TOKENS)


def build_t5_tokenizer(captions: list[str]) -> T5Tokenizer:
    """Unigram tokenizer in T5's form: every word of the captions, single letters for the rest."""
    words = sorted({word for line in captions for word in line.split()})
    letters = sorted(set("".join(words)) | {"▁"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -5.0) for word in words]
    pieces += [(letter, -20.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def build_text_encoders(
    tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Two fresh two-layer text encoders of width 128."""
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        # The pooled vector is read at the first token with this id.
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=3 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer_2.pad_token_id,
        eos_token_id=tokenizer_2.eos_token_id,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def build_transformer() -> FluxTransformer2DModel:
    """A fresh flow transformer: two double and six single blocks of width 192.

    Modulations and the last layer start at zero, so that every block starts as the identity.
    """
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for name, layer in model.named_modules():
        if name == "proj_out" or ("norm" in name and name.endswith(".linear")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


class FlowModel(nn.Module):
    """Transformer and text encoders as one module, with the flow-matching loss."""

    def __init__(self, tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer):
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(tokenizer, tokenizer_2)

    def forward(
        self, latents: torch.Tensor, times: torch.Tensor, ids: torch.Tensor, ids_2: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of packed latents ``(b, 16, 64)`` at ``times`` ``(b,)`` in [0, 1].

        ``ids`` and ``ids_2`` are the caption's tokens ``(b, 16)`` for CLIP and for T5.
        """
        words = self.text_encoder_2(ids_2)[0]
        return self.transformer(
            hidden_states=latents,
            encoder_hidden_states=words,
            pooled_projections=self.text_encoder(ids).pooler_output,
            timestep=times,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", latents.dtype),
            txt_ids=torch.zeros(words.shape[1], 3),
            return_dict=False,
        )[0]

    def loss(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        times: torch.Tensor,
        tokens: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Flow-matching loss, a scalar; latents and noise ``(b, 16, 64)``."""
        mixed = torch.lerp(latents, noise, times[:, None, None])
        return functional.mse_loss(self(mixed, times, *tokens), noise - latents)


class Pool:
    """Packed latents of rendered pictures, ready to train on, with the tokens of their captions."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, rows: torch.Tensor):
        self.mean, self.deviation, self.rows = mean, deviation, rows

    @classmethod
    @torch.no_grad()
    def encode(cls, vae: AutoencoderKL, pictures: torch.Tensor, pairs: torch.Tensor) -> "Pool":
        """Encode uint8 pictures ``(n, 64, 64, 3)``; ``pairs`` ``(n, 2)`` says what they show."""
        means, deviations = [], []
        for batch in tqdm(pictures.split(128), desc="encoding", mininterval=2):
            posterior = vae.encode(data.to_model_range(batch)).latent_dist
            means.append(
                pack((posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor)
            )
            deviations.append(pack(posterior.std * vae.config.scaling_factor))
        return cls(torch.cat(means), torch.cat(deviations), pairs[:, 0] * 8 + pairs[:, 1])

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw latents ``(count, 16, 64)`` and the rows of their captions ``(count,)``."""
        chosen = torch.randint(len(self.rows), (count,), generator=generator)
        mean, deviation = self.mean[chosen], self.deviation[chosen]
        noise = torch.randn(mean.shape, generator=generator)
        return mean + deviation * noise, self.rows[chosen]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents ``(b, 16, 8, 8)`` to tokens ``(b, 16, 64)``."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def draw_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Logit-normal times in (0, 1), a little towards noise, as the sampler's shifted steps are."""
    return torch.sigmoid(0.4 + 1.2 * torch.randn(count, generator=generator))


def all_captions(selection: list[data.Emoji]) -> list[str]:
    """Captions of every pair; row ``8 * emoji + colour``."""
    return [data.caption(emoji, colour) for emoji in selection for colour in data.COLOURS]


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids ``(n, 16)``, padded as FluxPipeline pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def pipeline_of(
    model: FlowModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer
) -> FluxPipeline:
    """The model as a FluxPipeline, with FLUX.1-dev's scheduler settings."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=model.transformer,
    )


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
        training.write_json(config, content)
    training.replace_directory(beside, path)


def sample(pipeline: FluxPipeline, captions: list[str], steps: int, seed: int) -> torch.Tensor:
    """One picture per caption, through FluxPipeline; float32 ``(n, 3, 64, 64)`` in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        captions,
        height=data.SIZE,
        width=data.SIZE,
        num_inference_steps=steps,
        max_sequence_length=TOKENS,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(captions))],
        output_type="pt",
    ).images
    return pictures * 2 - 1


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def held_out_loss(model: FlowModel, pool: Pool, tables: tuple[torch.Tensor, ...]) -> float:
    """Loss on pictures of held-out captions, with the same noise and times at every call."""
    generator = torch.Generator().manual_seed(12345)
    losses = []
    for _ in range(4):
        latents, rows = pool.draw(128, generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = draw_times(len(latents), generator)
        losses.append(model.loss(latents, noise, times, tuple(t[rows] for t in tables)).item())
    return sum(losses) / len(losses)


class Run:
    """The state of one training: model, average, optimizer, counters; can be saved and resumed."""

    def __init__(self, model: FlowModel, rate: float):
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)
        self.optimizer = training.MuonAndAdamW(model, rate)
        self.iteration, self.elapsed, self.history = 0, 0.0, []

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "average", "optimizer")}
        state |= {key: getattr(self, key) for key in ("iteration", "elapsed", "history")}
        training.save_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = training.load_checkpoint(path)
        for key in ("model", "average", "optimizer"):
            getattr(self, key).load_state_dict(state[key])
        for key in ("iteration", "elapsed", "history"):
            setattr(self, key, state[key])

    def start_from(self, folder: Path) -> None:
        """Begin with the weights of a pipeline directory, for instance the shipped one."""
        pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        for part in ("transformer", "text_encoder", "text_encoder_2"):
            weights = getattr(pipeline, part).state_dict()
            for model in (self.model, self.average):
                getattr(model, part).load_state_dict(weights)

    def step(
        self, pool: Pool, tables: tuple[torch.Tensor, ...], batch: int, generator: torch.Generator
    ) -> float:
        """One training step on a fresh batch; returns its loss."""
        latents, rows = pool.draw(batch, generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = draw_times(batch, generator)
        loss = self.model.loss(latents, noise, times, tuple(table[rows] for table in tables))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        decay = min(0.999, (1 + self.iteration) / (10 + self.iteration))
        update_average(self.average, self.model, decay)
        return loss.item()


def train(
    run: Run,
    pools: tuple[Pool, Pool],
    tables: tuple[torch.Tensor, ...],
    arguments: argparse.Namespace,
    look: callable,
) -> float:
    """Train to the end of the budget; ``look(run)`` writes samples now and then; final loss."""
    budget = training.Budget(arguments.iterations, arguments.minutes, run.elapsed)
    generator = torch.Generator().manual_seed(arguments.seed + run.iteration)
    bar = tqdm(initial=run.iteration, desc="flow", mininterval=10)
    recent = []
    while (progress := budget.progress(run.iteration)) < 1:
        training.set_learning_rate(run.optimizer, training.learning_rate(arguments.rate, progress))
        recent.append(run.step(pools[0], tables, arguments.batch, generator))
        bar.update()
        if run.iteration % arguments.every == 0:
            run.elapsed = budget.elapsed
            entry = {"iteration": run.iteration, "loss": sum(recent) / len(recent)}
            entry["held_out_loss"] = held_out_loss(run.average, pools[1], tables)
            run.history.append(entry)
            recent.clear()
            bar.write(f"{progress:.3f} {entry}")
            look(run)  # first, for the tokenizers: a checkpoint goes with those of the pipeline
            run.save(arguments.out / "checkpoint.pt")
    run.elapsed = budget.elapsed
    return sum(recent) / len(recent) if recent else math.nan


def main() -> None:
    """Train on a pool of encoded pictures; write ``pipeline``, ``samples.png``, ``report.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data.add_data_arguments(parser)
    training.add_training_arguments(parser, iterations=3000, batch=64)
    parser.add_argument("--vae", type=Path, required=True, help="trained autoencoder directory")
    parser.add_argument("--pool", type=int, default=14000, help="pictures to render and encode")
    parser.add_argument("--start", type=Path, help="begin with this pipeline's weights")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--every", type=int, default=200, help="iterations between checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    selection = data.read_selection(arguments.data)
    icons = data.load_icons(selection, arguments.assets)
    vae = AutoencoderKL.from_pretrained(arguments.vae, use_safetensors=True).eval()
    pools = []
    for held_out, count in ((False, arguments.pool), (True, 1024)):
        pairs = data.pairs(selection, held_out)
        pictures, shown = data.render_pool(icons, pairs, count, arguments.seed + 10 + held_out)
        pools.append(Pool.encode(vae, torch.from_numpy(pictures), torch.from_numpy(shown)))
    captions = all_captions(selection)
    trained_on = [captions[8 * emoji + colour] for emoji, colour in data.pairs(selection, False)]
    checkpoint = arguments.out / "checkpoint.pt"
    resumes = arguments.resume and checkpoint.exists()
    before = arguments.out / "pipeline" if resumes else arguments.start
    if before:  # the weights know the tokens by their numbers, which another tokenizer may not keep
        tokenizer = CLIPTokenizer.from_pretrained(before / "tokenizer")
        tokenizer_2 = T5Tokenizer.from_pretrained(before / "tokenizer_2")
    else:
        tokenizer, tokenizer_2 = build_clip_tokenizer(trained_on), build_t5_tokenizer(trained_on)
    tables = (tokenize(tokenizer, captions), tokenize(tokenizer_2, captions))
    run = Run(FlowModel(tokenizer, tokenizer_2), arguments.rate)
    if arguments.start:
        run.start_from(arguments.start)
    if resumes:
        run.load(checkpoint)
    shown = [captions[8 * emoji + colour] for emoji, colour in data.pairs(selection, True)]
    shown = shown[:: len(shown) // 40][:40]

    def look(run: Run) -> None:
        """Write a sheet of held-out captions and the pipeline as it is now."""
        pipeline = pipeline_of(run.average, vae, tokenizer, tokenizer_2)
        data.save_grid(sample(pipeline, shown, 20, 0), arguments.out / "samples.png", columns=10)
        export(pipeline, arguments.out / "pipeline")

    final = train(run, tuple(pools), tables, arguments, look)
    look(run)
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in run.model.named_children()
    }
    training.write_json(
        arguments.out / "report.json",
        {
            "iterations": run.iteration,
            "batch": arguments.batch,
            "pool": arguments.pool,
            "minutes": run.elapsed / 60,
            "peak_rate": arguments.rate,
            "parameters": parts,
            "final_loss": run.history[-1]["loss"] if math.isnan(final) else final,
            "held_out_loss": held_out_loss(run.average, pools[1], tables),
            "history": run.history,
        },
    )


if __name__ == "__main__":
    main()

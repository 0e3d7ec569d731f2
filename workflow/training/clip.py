"""Train a small CLIP on the emoji pictures, in open_clip's own format.

The result is one directory that ``open_clip.create_model_and_transforms("local-dir:PATH")`` and
``open_clip.get_tokenizer("local-dir:PATH")`` load offline: ``open_clip_config.json``,
``open_clip_model.safetensors`` and the tokenizer's files.
"""

import argparse
import copy
import shutil
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTokenizer

from eigencache.emoji import data, flow, training

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(tokenizer: CLIPTokenizer) -> dict:
    """open_clip's description of the model: a ViT on 8 x 8 patches and a two-layer text tower."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": data.SIZE,
            "patch_size": 8,
            "width": 128,
            "head_width": 32,
            "layers": 4,
        },
        "text_cfg": {
            "context_length": flow.TOKENS,
            "vocab_size": len(tokenizer),
            # For a local directory open_clip takes the tokenizer from that directory; the name only
            # has to be there.
            "hf_tokenizer_name": "emoji-clip",
            "width": 128,
            "heads": 4,
            "layers": 2,
            "pool_type": "eos",
            "eos_id": tokenizer.eos_token_id,
            "pad_id": tokenizer.pad_token_id,
        },
    }


def build(config: dict) -> open_clip.CLIP:
    """A fresh model that scales images from [0, 1] to [-1, 1]."""
    model = open_clip.CLIP(**copy.deepcopy(config))
    model.visual.image_mean, model.visual.image_std = MEAN, STD
    return model


class Pictures:
    """Rendered pictures, grouped by pair, so that a batch never holds the same caption twice."""

    def __init__(self, pictures: np.ndarray, pairs: np.ndarray):
        self.pictures = torch.from_numpy(pictures)
        rows = torch.from_numpy(pairs[:, 0] * 8 + pairs[:, 1])
        self.captions, inverse = rows.unique(return_inverse=True)
        order = inverse.argsort(stable=True)
        self.members = order.split(inverse.bincount().tolist())

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw pictures of ``count`` captions: ``(count, 3, 64, 64)`` and the captions' rows."""
        groups = torch.randperm(len(self.captions), generator=generator)[:count]
        picks = [
            self.members[group][torch.randint(len(self.members[group]), (), generator=generator)]
            for group in groups
        ]
        return data.to_model_range(self.pictures[torch.stack(picks)]), self.captions[groups]


def contrastive_loss(model: open_clip.CLIP, images: torch.Tensor, tokens: torch.Tensor):
    """Symmetric cross-entropy of a batch whose i-th picture has the i-th caption; a scalar."""
    image, text = model.encode_image(images, True), model.encode_text(tokens, True)
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(logits))
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


@torch.no_grad()
def retrieval(model: open_clip.CLIP, pictures: Pictures, tables: torch.Tensor) -> dict:
    """Share of pictures whose nearest caption is their own: among their captions, and among all."""
    model.eval()
    generator = torch.Generator().manual_seed(7)
    images, rows = pictures.draw(len(pictures.captions), generator)
    image = torch.cat([model.encode_image(batch, True) for batch in images.split(64)])
    text = model.encode_text(tables, True)
    among_all = (image @ text.T).argmax(dim=1) == rows
    among_these = (image @ text[rows].T).argmax(dim=1) == torch.arange(len(rows))
    model.train()
    return {
        "pictures": len(rows),
        "all_captions": len(tables),
        "accuracy_among_held_out": among_these.float().mean().item(),
        "accuracy_among_all": among_all.float().mean().item(),
    }


def export(model: open_clip.CLIP, tokenizer: CLIPTokenizer, config: dict, path: Path) -> None:
    """Write the directory that open_clip loads, whole or not at all; weights in float16."""
    beside = path.with_name(path.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, beside / "open_clip_model.safetensors")
    tokenizer.save_pretrained(beside)
    save_config_for_hf(model, beside / "open_clip_config.json", config)
    training.replace_directory(beside, path)


def train(
    model: open_clip.CLIP, pictures: Pictures, table: torch.Tensor, arguments: argparse.Namespace
) -> dict:
    """Train to the end of the budget; returns iterations, minutes and final loss."""
    optimizer = training.MuonAndAdamW(model, arguments.rate)
    checkpoint, iteration, elapsed = arguments.out / "checkpoint.pt", 0, 0.0
    if arguments.resume and checkpoint.exists():
        state = training.load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        iteration, elapsed = state["iteration"], state["elapsed"]
    generator = torch.Generator().manual_seed(arguments.seed + iteration)
    budget = training.Budget(arguments.iterations, arguments.minutes, elapsed)
    bar, recent = tqdm(initial=iteration, desc="clip", mininterval=5), []
    while (progress := budget.progress(iteration)) < 1:
        training.set_learning_rate(
            optimizer, training.learning_rate(arguments.rate, progress, 0.05)
        )
        images, rows = pictures.draw(arguments.batch, generator)
        loss = contrastive_loss(model, images, table[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        iteration += 1
        recent = [*recent[-49:], loss.item()]
        bar.update()
        bar.set_postfix(loss=f"{recent[-1]:.3f}")
        if iteration % 100 == 0:
            state = {"iteration": iteration, "elapsed": budget.elapsed}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            training.save_checkpoint(checkpoint, state)
    return {
        "iterations": iteration,
        "batch": arguments.batch,
        "minutes": budget.elapsed / 60,
        "peak_rate": arguments.rate,
        "final_loss": sum(recent) / max(1, len(recent)),
    }


def main() -> None:
    """Train the emoji CLIP; write ``model/`` and ``report.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data.add_data_arguments(parser)
    training.add_training_arguments(parser, iterations=600, batch=128)
    parser.add_argument("--pool", type=int, default=12000, help="pictures to render")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    selection = data.read_selection(arguments.data)
    icons = data.load_icons(selection, arguments.assets)
    sets = []
    for held_out, count in ((False, arguments.pool), (True, 2 * len(selection))):
        pairs = data.pairs(selection, held_out)
        sets.append(
            Pictures(*data.render_pool(icons, pairs, count, arguments.seed + 20 + held_out))
        )
    captions = flow.all_captions(selection)
    tokenizer = flow.build_clip_tokenizer([captions[row] for row in sets[0].captions])
    table = flow.tokenize(tokenizer, captions)
    config = model_config(tokenizer)
    model = build(config)
    report = train(model, sets[0], table, arguments)
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["pool"] = arguments.pool
    report["held_out"] = retrieval(model, sets[1], table)
    export(model, tokenizer, config, arguments.out / "model")
    training.write_json(arguments.out / "report.json", report)


if __name__ == "__main__":
    main()

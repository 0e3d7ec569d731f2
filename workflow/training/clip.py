"""Train a small CLIP on the emoji pictures, in open_clip's own format.

The result is one directory that ``open_clip.create_model_and_transforms("local-dir:PATH")`` and
``open_clip.get_tokenizer("local-dir:PATH")`` load offline: ``open_clip_config.json``,
``open_clip_model.safetensors`` and the tokenizer's files.
"""

import argparse
import copy
import shutil
from pathlib import Path

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPTokenizer

from training import data, steps, text, vae

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(tokenizer: CLIPTokenizer) -> dict:
    """open_clip's description of the model: a ViT on 16 x 16 patches and a two-layer text tower."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": data.SIZE,
            "patch_size": 16,
            "width": 128,
            "head_width": 32,
            "layers": 4,
        },
        "text_cfg": {
            "context_length": text.TOKENS,
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
    """Painted pictures as uint8 ``(n, 3, 128, 128)``, with their captions ``(n, 3)``."""

    def __init__(self, painter: data.Painter, rows: torch.Tensor):
        """Paint captions as ``Scenes.draw`` gives them, in any order."""
        self.rows = rows
        nothing = len(painter.large)  # the right emoji of a picture of one thing
        shape = (len(rows), 3, painter.size, painter.size)
        self.levels = torch.empty(shape, dtype=torch.uint8, device=rows.device)
        for alone in (True, False):
            places = ((rows[:, 1] == nothing) == alone).nonzero().flatten()
            for chosen in places.split(256) if len(places) else ():
                painted = data.paint(painter, rows[chosen], len(chosen) if alone else 0)
                self.levels[chosen] = ((painted + 1) * 127.5).round().clamp(0, 255).byte()

    def images(self, chosen: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1]."""
        return self.levels[chosen].float() / 127.5 - 1

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw pictures ``(count, 3, 128, 128)`` and their captions ``(count, 3)``."""
        chosen = torch.randint(len(self.rows), (count,), device=self.rows.device)
        return self.images(chosen), self.rows[chosen]


def contrastive_loss(
    model: open_clip.CLIP, images: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy of a batch whose i-th picture has the i-th caption; a scalar.

    A caption that occurs twice is no wrong answer for its other picture.
    """
    image, caption = model.encode_image(images, True), model.encode_text(tokens, True)
    logits = model.logit_scale.exp().clamp(max=100) * image @ caption.T
    same = (rows[:, None] == rows[None]).all(dim=2)
    same &= ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


@torch.no_grad()
def accuracy(
    model: open_clip.CLIP, pictures: Pictures, parts: text.Parts, among: torch.Tensor
) -> dict:
    """Share of pictures whose nearest caption of ``among`` ``(m, 3)`` is their own."""
    every = torch.arange(len(pictures.rows), device=among.device)
    image = torch.cat([model.encode_image(pictures.images(c), True) for c in every.split(64)])
    caption = torch.cat(
        [model.encode_text(parts.ids(rows).long(), True) for rows in among.split(512)]
    )
    nearest = among[(image @ caption.T).argmax(dim=1)]
    right = (nearest == pictures.rows).all(dim=1)
    return {
        "pictures": len(right),
        "captions": len(among),
        "accuracy": right.float().mean().item(),
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
    steps.replace_directory(beside, path)


def train(
    selection: list[data.Emoji],
    icons: torch.Tensor,
    tokenizer: CLIPTokenizer,
    out: Path,
    budget_of: callable,
    device: torch.device,
    batch: int = 128,
    pool: int = 12_000,
    rate: float = 1e-3,
    seed: int = 0,
) -> dict:
    """Train; write ``out/model`` and ``out/clip.json``; returns the report.

    Half of the pictures show one thing, half two. Those of two things are judged among the held-out
    captions and the same with left and right exchanged, so that the order counts.
    """
    painter = data.Painter(icons, device)
    parts = text.Parts(tokenizer, selection, device)
    trained, held_out = (data.Scenes(selection, kind, device) for kind in (False, True))
    torch.manual_seed(seed + 20)
    pictures = Pictures(painter, trained.draw(pool // 2, pool - pool // 2))
    steps.say(f"clip: {pool} pictures are painted")
    config = model_config(tokenizer)
    torch.manual_seed(seed)
    trainee = steps.Trainee(build(config).to(device), torch.float32, decay=0.99)
    checkpoint = out / "clip.pt"
    if checkpoint.exists():
        trainee.load(checkpoint)

    def loss(worker: open_clip.CLIP) -> torch.Tensor:
        images, rows = pictures.draw(batch)
        return contrastive_loss(worker, images, parts.ids(rows).long(), rows)

    steps.train(
        trainee,
        loss,
        budget_of(trainee.elapsed),
        rate,
        "clip",
        checkpoint,
        seed=seed,
        warm_up=0.05,
        look=dict,
    )
    model = trainee.average.eval()
    torch.manual_seed(seed + 21)
    of_one = Pictures(painter, held_out.singles)
    distinct = held_out.doubles[torch.randperm(len(held_out.doubles), device=device)[:500]]
    of_two = Pictures(painter, distinct)
    report = {
        "iterations": trainee.iteration,
        "batch": batch,
        "minutes": trainee.elapsed / 60,
        "peak_rate": rate,
        "device": vae.device_name(device),
        "final_loss": trainee.history[-1]["loss"] if trainee.history else None,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "pool": pool,
        "one": accuracy(model, of_one, parts, torch.cat([held_out.singles, trained.singles])),
        "two": accuracy(
            model, of_two, parts, torch.cat([distinct, distinct[:, [1, 0, 2]]]).unique(dim=0)
        ),
    }
    export(model, tokenizer, config, out / "model")
    steps.write_json(out / "clip.json", report)
    return report


def main() -> None:
    """Train the emoji CLIP; write ``model/`` and ``clip.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data.add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--iterations", type=int, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=12_000, help="pictures to paint")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    selection = data.read_selection(arguments.data)
    icons = data.load_icons(selection, arguments.assets)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = train(
        selection,
        icons,
        text.kept_tokenizers(selection, arguments.out / "tokenizers")[0],
        arguments.out,
        lambda elapsed: steps.Budget(arguments.minutes, arguments.iterations, elapsed),
        torch.device(arguments.device),
        batch=arguments.batch,
        pool=arguments.pool,
        rate=arguments.rate,
        seed=arguments.seed,
    )
    steps.say(f"clip: {steps.shown({k: report[k]['accuracy'] for k in ('one', 'two')})}")


if __name__ == "__main__":
    main()

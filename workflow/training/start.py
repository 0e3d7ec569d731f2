"""Start folders: a FluxPipeline's weights to train on from, in a compact form.

A start folder has a pipeline's parts in a pipeline's places: ``vae``, ``tokenizer`` and
``tokenizer_2`` as they are, and the three trained parts (transformer, both text encoders) as one
``weights.safetensors`` each. A matrix is stored as int8 with one float32 scale for each row, under
``NAME`` and ``NAME.scale``; vectors are float16. ``examples.safetensors`` has some held-out
pictures as latents, to measure the weights with. An exported pipeline can be started from too.

    python -m training.start --pipeline PIPELINE --data EMOJI --assets ASSETS --out FOLDER
    python -m training.start --checkpoint flow.pt --out FOLDER

The second line takes a checkpoint of the flow's training if its loss on the examples is lower.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from training import data, flow, steps, text

TRAINED = ("transformer", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
SCALE = ".scale"
EXAMPLES = "examples.safetensors"


def packed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in the compact form."""
    small = {}
    for name, weight in weights.items():
        weight = weight.detach().float().cpu()
        if weight.ndim < 2:
            small[name] = weight.half().contiguous()
            continue
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-30) / 127  # of zeros too
        rows = scale.view(-1, *[1] * (weight.ndim - 1))
        small[name] = (weight / rows).round().clamp(-127, 127).to(torch.int8).contiguous()
        small[name + SCALE] = scale
    return small


def unpacked(small: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in float32, from the compact form or from float weights."""
    weights = {}
    for name, weight in small.items():
        if weight.dtype == torch.int8:
            scale = small[name + SCALE].view(-1, *[1] * (weight.ndim - 1))
            weights[name] = weight.float() * scale
        elif not name.endswith(SCALE) or name.removesuffix(SCALE) not in small:
            weights[name] = weight.float()
    return weights


def check(folder: Path) -> None:
    """Raise FileNotFoundError where a part of a start folder is missing."""
    missing = [
        part
        for part in ("vae", *TOKENIZERS, *TRAINED)
        if not any((folder / part).glob("*.safetensors" if part not in TOKENIZERS else "*.json"))
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}: it must be a pipeline's folder, or one that"
            " `python -m training.start` made"
        )


def load_weights(model: flow.FlowModel, folder: Path) -> None:
    """Give a model the weights of a start folder or a pipeline."""
    for part in TRAINED:
        weights: dict[str, torch.Tensor] = {}
        for path in sorted((folder / part).glob("*.safetensors")):
            weights |= unpacked(load_file(path))
        module: nn.Module = getattr(model, part)
        missing = set(dict(module.named_parameters())) - set(weights)
        unknown = module.load_state_dict(weights, strict=False).unexpected_keys
        if missing or unknown:
            raise ValueError(
                f"{folder / part} does not fit this code's {part}: missing"
                f" {sorted(missing)}, unknown {unknown}"
            )


def load(folder: Path) -> tuple[flow.FlowModel, AutoencoderKL, tuple[CLIPTokenizer, T5Tokenizer]]:
    """Model and autoencoder of a start folder, in float32, and its tokenizers."""
    check(folder)
    tokenizers = text.load_tokenizers(folder)
    model = flow.FlowModel(*tokenizers).eval().requires_grad_(False)
    load_weights(model, folder)
    autoencoder = AutoencoderKL.from_pretrained(
        folder / "vae", dtype=torch.float32, use_safetensors=True
    )
    return model, autoencoder.eval().requires_grad_(False), tokenizers


def take_over(folder: Path, out: Path) -> None:
    """Copy a start folder's autoencoder and tokenizers to ``out``, where the stages look for them.

    What is in ``out`` already stays, since its stages were trained with it.
    """
    check(folder)
    if not (out / "vae.json").exists():
        report = folder / "reports" / "vae.json"
        shutil.copytree(folder / "vae", out / "vae", dirs_exist_ok=True)
        taken = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        steps.write_json(out / "vae.json", taken)
    for name in TOKENIZERS:
        if not (out / "tokenizers" / name).exists():
            shutil.copytree(folder / name, out / "tokenizers" / name)


def earlier(folder: Path) -> dict:
    """How a start folder's weights were trained, for the report of the training that goes on."""
    path = folder / "reports" / "flow.json"
    if not path.exists():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in report.items() if key != "history"}


def write(model: flow.FlowModel, pipeline: Path, out: Path, reports: list[Path]) -> None:
    """Write a start folder; everything but the model's weights comes from ``pipeline``.

    ``pipeline`` is a pipeline's folder or a start folder, and may be ``out`` itself. What else is
    in ``out``, its README for example, stays.
    """
    for part in ("vae", *TOKENIZERS):
        if pipeline != out:
            shutil.rmtree(out / part, ignore_errors=True)
            shutil.copytree(pipeline / part, out / part)
    for part in TRAINED:
        with steps.replacing(out / part / "weights.safetensors") as beside:
            save_file(packed(dict(getattr(model, part).named_parameters())), beside)
    for path in reports:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("history"):  # every tenth entry is enough to see the curve
            content["history"] = content["history"][:: max(1, len(content["history"]) // 10)]
        steps.write_json(out / "reports" / path.name, content)


@torch.no_grad()
def paint_examples(
    selection: list[data.Emoji],
    assets: Path,
    autoencoder: AutoencoderKL,
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer],
    count: int,
) -> dict[str, torch.Tensor]:
    """Held-out pictures as latents, with their captions' tokens: what a folder is measured with."""
    device = torch.device("cpu")
    painter = data.Painter(data.load_icons(selection, assets), device)
    scenes = data.Scenes(selection, True, device)
    parts = tuple(text.Parts(tokenizer, selection, device) for tokenizer in tokenizers)
    torch.manual_seed(11)
    pool = flow.Pool.encode(autoencoder, painter, scenes, parts, count, torch.float32)
    return {
        "mean": pool.mean.half(),
        "deviation": pool.deviation.half(),
        "ids": pool.ids.short(),
        "ids_2": pool.ids_2.short(),
    }


def loss_on_examples(model: flow.FlowModel, folder: Path) -> float:
    """The flow's loss on a start folder's examples, always with the same noise and times."""
    kept = load_file(folder / EXAMPLES)
    ids, ids_2 = kept["ids"].int(), kept["ids_2"].int()
    pool = flow.Pool(kept["mean"], kept["deviation"], ids, ids_2, (ids[:1], ids_2[:1]))
    places = flow.positions(data.SIZE, torch.device("cpu"))
    return flow.HeldOutLoss(pool, model.transformer.pos_embed(places))(model)


def pack(arguments: argparse.Namespace) -> None:
    """Make a start folder from an exported pipeline."""
    source, out = arguments.pipeline, arguments.out
    model, autoencoder, tokenizers = load(source)
    if arguments.transformer:
        weights = load_file(next(arguments.transformer.glob("*.safetensors")))
        model.transformer.load_state_dict(unpacked(weights))
    selection = data.read_selection(arguments.data)
    examples = paint_examples(
        selection, arguments.assets, autoencoder, tokenizers, arguments.examples
    )
    write(model, source, out, arguments.reports)
    with steps.replacing(out / EXAMPLES) as beside:
        save_file(examples, beside)
    report = {"examples": arguments.examples, "loss": loss_on_examples(model, out)}
    report["loss_compact"] = loss_on_examples(load(out)[0], out)
    steps.write_json(out / "reports" / "start.json", report)
    steps.say(f"{out} is written: {steps.shown(report)}")


def improve(arguments: argparse.Namespace) -> None:
    """Take a checkpoint's averaged weights into a start folder if their loss is lower."""
    out = arguments.out
    model = load(out)[0]
    path = out / "reports" / "start.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    before = loss_on_examples(model, out)
    state = torch.load(arguments.checkpoint, weights_only=True, map_location="cpu")
    model.load_state_dict(state["average"])
    after = loss_on_examples(model, out)
    line = f"loss {before:.4f} in {out}, {after:.4f} after {state['iteration']} more iterations"
    if after >= before:
        steps.say(f"nothing is written: {line}")
        return
    write(model, out, out, [])
    report |= {"loss": after, "loss_compact": loss_on_examples(load(out)[0], out)}
    went_on = {"iterations": state["iteration"], "minutes": state["elapsed"] / 60}
    report["went_on"] = [*report.get("went_on", []), went_on | {"loss_before": before}]
    steps.write_json(path, report)
    steps.say(f"{out} is better now: {line}")


def main() -> None:
    """Make a start folder, or replace its weights by a checkpoint's that are better."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="start folder")
    parser.add_argument("--checkpoint", type=Path, help="flow.pt, to take where it is better")
    parser.add_argument("--pipeline", type=Path, help="exported pipeline to make the folder from")
    parser.add_argument("--transformer", type=Path, help="transformer's folder, if it is another")
    parser.add_argument("--reports", type=Path, nargs="*", default=[], help="to keep beside it")
    parser.add_argument("--data", type=Path, help="selection, emoji.tsv; with --pipeline")
    parser.add_argument("--assets", type=Path, help="folder of <hexcode>.webp; with --pipeline")
    parser.add_argument("--examples", type=int, default=48, help="pictures to measure with")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if (arguments.pipeline is None) == (arguments.checkpoint is None):
        parser.error("give either --pipeline or --checkpoint")
    if arguments.checkpoint:
        improve(arguments)
    elif arguments.data is None or arguments.assets is None:
        parser.error("--pipeline needs --data and --assets, to paint the examples")
    else:
        pack(arguments)


if __name__ == "__main__":
    main()

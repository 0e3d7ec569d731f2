"""Sample an image of every prompt, by a plan or without.

Image I is of prompt I of the file, counted from 0, and is written as OUT/0000I.png. Its noise
depends on the seed and I alone, so that runs with different plans can be compared image by image;
they are the images that the workflow makes with that seed.
"""

import argparse
from pathlib import Path

from eigencache.commands._common import (
    add_model,
    add_settings,
    loaded,
    prompts_of,
    remembered_settings,
    settings_from,
)

EXAMPLES = """\
examples:
  eigencache sample --model models/flux-dev --prompts prompts.txt --plan plan.safetensors \\
      --out images

  the full run, to compare with:
  eigencache sample --model data/emoji-flux --prompts data/prompts/emoji-evaluation.txt \\
      --num-prompts 8 --height 64 --width 64 --max-sequence-length 16 --out full
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the plan, the seed, and where to write images."""
    add_model(parser)
    parser.add_argument(
        "--plan", type=Path, metavar="FILE",
        help="of `eigencache plan` or the workflow; by default every step is computed in full",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=2026, help="of the images' noise; by default %(default)s"
    )
    parser.add_argument(
        "--anchor-device", metavar="DEVICE",
        help="where the cache keeps features, such as cpu; by default where they are made",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="to write into")
    add_settings(parser, "as the plan says that it was calibrated; or else as FLUX.1-dev is called")


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the images, and say what the cache did."""
    from contextlib import nullcontext

    from tqdm import tqdm

    from eigencache._files import replacing
    from eigencache.calibration.sampler import image_seed, sample
    from eigencache.plan import Plan, PlanError
    from eigencache.runtime import cached

    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}")
    plan = Plan.load(arguments.plan) if arguments.plan else None
    prompts = prompts_of(arguments)
    settings = settings_from(arguments, remembered_settings(plan.source) if plan else None)
    if plan and len(plan) != settings.num_steps:
        raise PlanError(
            f"{arguments.plan}: made for {len(plan)} steps, not for {settings.num_steps}; state "
            f"--steps {len(plan)}"
        )
    pipe, texts = loaded(arguments, prompts, settings)
    applied = cached(pipe, plan, arguments.anchor_device) if plan else nullcontext()
    with applied as stats:
        for index, text in enumerate(tqdm(texts, desc="sample", unit="image")):
            made = sample(pipe, text, settings, image_seed(arguments.seed, index))
            with replacing(arguments.out / f"{index:05d}.png") as part:
                made.image.save(part, format="PNG")
    print(f"{arguments.out}: {len(texts)} images" + (f"; {stats}" if stats else ""))

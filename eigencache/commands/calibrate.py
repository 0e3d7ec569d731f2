"""Run a model on calibration prompts and write the kernel of its features.

The kernel says how the features of any two sampler steps go together; `eigencache plan` makes plans
from it. It takes as long as sampling the prompts without a cache. 8 to 32 prompts suffice, and none
of them should be used to judge the result.
"""

import argparse
from pathlib import Path

from eigencache.commands._common import (
    add_method,
    add_model,
    add_settings,
    loaded,
    parsed_options,
    prompts_of,
    settings_from,
)

EXAMPLES = """\
examples:
  eigencache calibrate --model models/flux-dev --prompts data/prompts/scenes-calibration.txt \\
      --out kernel.safetensors

  the small model of this repository, which makes images of 64 x 64 pixels:
  eigencache calibrate --model data/emoji-flux --prompts data/prompts/emoji-calibration.txt \\
      --num-prompts 32 --height 64 --width 64 --max-sequence-length 16 --out kernel.safetensors

  a kernel for a method of another tap:
  eigencache calibrate --method EigenCache-published ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, for which method the kernel is, and where to write it."""
    add_model(parser)
    add_method(parser)
    parser.add_argument(
        "--seed", type=int, default=7,
        help="of the calibration's noise; by default %(default)s. Take another to judge the result",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="kernel to write, .safetensors"
    )
    add_settings(parser, "as FLUX.1-dev is: 50 steps, 1024 x 1024 pixels, guidance 3.5, 512 tokens")


def run(arguments: argparse.Namespace) -> None:
    """Record the kernel that the method wants, and write it."""
    from eigencache.calibration import kind_of, method_of
    from eigencache.calibration.recording import record_kernels

    method, options = method_of(arguments.method), parsed_options(arguments.options)
    kind = kind_of(method, arguments.tap, options)
    prompts, settings = prompts_of(arguments), settings_from(arguments)
    if kind.runs is not None and kind.runs > len(prompts):
        raise ValueError(f"runs={kind.runs}: there are only {len(prompts)} prompts")
    pipe, texts = loaded(arguments, prompts, settings)
    (kernel,) = record_kernels(pipe, texts, settings, arguments.seed, [kind])
    kernel.save(arguments.out)
    print(
        f"{arguments.out}: kernel of tap {kernel.tap}, {len(kernel.streams)} streams, "
        f"{len(kernel.timesteps)} steps, {kernel.runs} runs"
    )

"""Run a model on calibration prompts and write the kernel of its features.

The kernel says how similar the features of any two sampler steps are; `eigencache plan` makes plans
from it. It also says how outputs answer errors of the latents. Calibration takes a seventh longer
than sampling the prompts without a cache. One prompt or two suffice for the open loop, 8 to 32 for
the closed loop; do not judge the result by any of them.

examples:
  eigencache calibrate --model black-forest-labs/FLUX.1-dev --prompts calibration.txt \\
      --steps 28 --height 1024 --width 1024 --out kernel.safetensors

  the small model of this repository, which makes images of 128 x 128 pixels:
  eigencache calibrate --model data/emoji-flux --prompts data/prompts/emoji-calibration.txt \\
      --num-prompts 32 --steps 50 --height 128 --width 128 --max-sequence-length 24 \\
      --out kernel.safetensors

  a kernel for a method of another tap:
  eigencache calibrate --method EigenCache-published ...
"""

import argparse
from pathlib import Path

from eigencache.commands._common import Calls, check_file, parsed_options
from eigencache.commands._flags import add_call, add_method, add_model, at_least
from eigencache.methods import method_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, for which method the kernel is, and where to write it."""
    add_model(parser)
    add_method(parser)
    parser.add_argument(
        "--seed", type=at_least(0), default=7,
        help="seed of the calibration noise; by default %(default)s. Judge the result by another",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", required=True, help="kernel file to write, .safetensors"
    )
    add_call(parser, "the pipeline's own defaults apply")


def run(arguments: argparse.Namespace) -> None:
    """Record the kernel that the method wants, and write it."""
    method, options = method_of(arguments.method), parsed_options(arguments.options)
    calls = Calls(arguments)
    kind = method.kind(arguments.tap, **options).among(len(calls) if method.needs_kernel else 1)
    check_file(arguments.out)
    kernel = calls.calibration(arguments.seed).kernel(kind)
    kernel.save(arguments.out)
    print(
        f"{arguments.out}: kernel of tap {kernel.tap}, {len(kernel.streams)} streams, "
        f"{len(kernel.timesteps)} steps, {kernel.runs} runs"
    )

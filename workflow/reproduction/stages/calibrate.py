"""Calibrate: run the model on calibration prompts and sum up the kernels of its features."""

import argparse
from pathlib import Path

from eigencache.calibration import Calibration
from eigencache.commands.prompts import opened, read_calls
from eigencache.kernel import Kind
from reproduction.models.pipeline import add_pipeline, loaded


def main(arguments: argparse.Namespace) -> None:
    calls = read_calls(arguments.prompts, arguments.num_prompts)
    kinds = [Kind.of(Path(path).stem).among(len(calls)) for path in arguments.kernels]
    pipe = loaded(arguments, calls)
    calls = [opened(call) for call in calls]
    calibration = Calibration(pipe, calls, arguments.arguments, arguments.seed)
    for path, kernel in zip(arguments.kernels, calibration.kernels(kinds), strict=True):
        kernel.save(path)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("calibrate", description=__doc__)
    add_pipeline(parser)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--kernels", nargs="+", required=True,
        help="files to write, named TAP.FEATURES.NORMALISATION.safetensors",
    )  # fmt: skip
    run(main, parser, outputs=["kernels"], sources=["prompts"], models=["model"])

"""Calibrate: run the model on calibration prompts and sum up the kernels of its features."""

import argparse
import json
from pathlib import Path

import torch

from eigencache.calibration.recording import Kind, record_kernels
from eigencache.calibration.sampler import Settings, load_encoded
from eigencache.commands.prompts import read_prompts
from reproduction.models.check import verified
from reproduction.stages import LOW_MEMORY, run


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    kinds = [Kind.of(Path(path).stem) for path in arguments.kernels]
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    for path, kind in zip(arguments.kernels, kinds, strict=True):
        if kind.runs is not None and kind.runs > len(prompts):
            raise ValueError(f"{path}: of {kind.runs} runs, there are {len(prompts)} prompts")
    model = verified(arguments.model)
    pipe, texts = load_encoded(model, prompts, settings, arguments.low_memory)
    kernels = record_kernels(pipe, texts, settings, arguments.seed, kinds)
    for path, kernel in zip(arguments.kernels, kernels, strict=True):
        kernel.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("calibrate", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument(
        "--kernels", nargs="+", required=True,
        help="files to write, named TAP.FEATURES.NORMALISATION.safetensors",
    )  # fmt: skip
    run(main, parser, outputs=["kernels"], sources=["prompts"], models=["model"])

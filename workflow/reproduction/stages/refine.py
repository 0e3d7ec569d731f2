"""Refine: fit the plans of one method with the network in the loop.

One plan for each budget, or the cheapest plan for a quality (`psnr` in dB among the options).
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from eigencache.calibration.refinement import Refinement, check_held_out
from eigencache.calibration.sampler import Settings, load_encoded
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from reproduction.models.check import verified
from reproduction.stages import LOW_MEMORY, run


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    spec = json.loads(arguments.method)
    method, kernel = METHODS[spec.pop("method")], Kernel.load(arguments.kernel)
    quality = spec.pop("psnr", None)
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    check_held_out(method.parts(1, **spec).closed_loop, len(prompts))  # before loading
    model, seed = verified(arguments.model), arguments.seed
    pipe, texts = load_encoded(model, prompts, settings, arguments.low_memory)
    refinement = Refinement(pipe, texts, settings, seed, method, kernel, spec)
    for path in tqdm([Path(path) for path in arguments.plans], desc="refine", unit="plan"):
        budgeted = quality is None
        plan = refinement.plan(int(path.stem)) if budgeted else refinement.cheapest(quality)
        plan.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("refine", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--kernel", required=True, help="of the kind the method wants")
    parser.add_argument("--method", required=True, help='as JSON: {"method": name, options ...}')
    parser.add_argument("--prompts", required=True, help="calibration prompts")
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--seed", type=int, required=True, help="of the calibration")
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument(
        "--plans",
        nargs="+",
        required=True,
        help="files to write, BUDGET.safetensors; or one file, of the plan for a quality",
    )
    run(main, parser, outputs=["plans"], inputs=["kernel"], sources=["prompts"], models=["model"])

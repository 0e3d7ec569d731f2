"""Refine: fit the plans of one method with the network in the loop.

One plan for each budget, or the cheapest plan for a quality (`psnr` in dB among the options).
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from eigencache.closed_loop import refine
from eigencache.full_runs import full_runs
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import Plan, predicted_psnr
from eigencache.prompts import read_prompts
from eigencache.quality import FEWEST, Judge, cheapest, with_prediction
from eigencache.sampler import Settings, load_encoded
from eigencache.stages import LOW_MEMORY, run
from eigencache.stages.fetch import verified


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    spec = json.loads(arguments.method)
    method, kernel = METHODS[spec.pop("method")], Kernel.load(arguments.kernel)
    quality = spec.pop("psnr", None)
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    loop = method.parts(1, **spec).closed_loop
    fitted = len(prompts) - loop.held_out
    if fitted < 1:
        raise ValueError(
            f"{arguments.prompts}: {len(prompts)} calibration prompts leave none to fit on when "
            f"{loop.held_out} are held out; state more prompts, or fewer held_out"
        )
    model, seed = verified(arguments.model), arguments.seed
    pipe, texts = load_encoded(model, prompts, settings, arguments.low_memory)
    runs = full_runs(pipe, texts, settings, seed, range(fitted), loop.batch)
    rest = range(fitted, len(prompts))
    held_out = full_runs(pipe, texts, settings, seed, rest, loop.batch)
    judge = Judge(pipe, {index: texts[index] for index in rest}, settings, seed)

    def refined(budget: int) -> Plan:
        parts = method.parts(budget, **spec)
        plan = method.plan(budget, kernel.timesteps, kernel, **spec)
        matrix = parts.use.of(kernel).matrix()
        plan = refine(plan, parts.predictor, matrix, runs, held_out, loop)
        plan = with_prediction(plan, judge)
        tqdm.write(
            f"{budget} full steps {list(plan.full_steps)}: predicted PSNR "
            f"{predicted_psnr(plan):.2f} dB; {plan.source['closed loop']}"
        )
        return plan

    for path in tqdm([Path(path) for path in arguments.plans], desc="refine", unit="plan"):
        if quality is None:
            plan = refined(int(path.stem))
        else:
            plan = cheapest(refined, quality, range(FEWEST, settings.num_steps + 1))
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

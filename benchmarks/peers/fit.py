"""Fit the learned solvers, and EigenCache's plans, on the calibration prompts.

    python -m benchmarks.peers.fit [METHOD...] [--budgets 5 7 9 13]

from the project's folder. Every fit is a file OUT/METHOD/BUDGET.json with its coefficients and what
it cost, written when it is done; those that are there are not made again. `learned.py` samples by
them.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from benchmarks.peers.fitting.meter import Meter
from benchmarks.peers.fitting.methods import METHODS, Problem
from benchmarks.peers.sampling import STEPS, cases_of
from eigencache.calibration.sampler import load_pipeline
from eigencache.commands.prompts import read_prompts
from reproduction.experiment import Experiment


def main(arguments: argparse.Namespace) -> None:
    config = Experiment(yaml.safe_load(arguments.config.read_text())).config
    torch.set_num_threads(config.threads)
    pipe = load_pipeline(arguments.model, config.dtype)
    theirs = config.calibration
    cases = cases_of(read_prompts(theirs.prompts, theirs.num_prompts), theirs.seed)
    shared: dict = {}
    for budget in arguments.budgets:
        for name in arguments.methods:
            path = arguments.out / name / f"{budget}.json"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with Meter(pipe.transformer) as meter:
                problem = Problem(
                    pipe, cases, theirs.seed, config.arguments.stated, meter, arguments.limit,
                    path.with_suffix(".log"), shared,
                )  # fmt: skip
                fitted, told = METHODS[name](problem, budget)
            made = {
                "method": name,
                "budget": budget,
                "steps": config.arguments.stated[STEPS],
                "prompts": problem.used,
                "calls": meter.calls,
                "backward_calls": meter.backward_calls,
                "seconds": round(meter.seconds, 1),
                **told,
                "fitted": fitted,
            }
            path.write_text(json.dumps(made, indent=1) + "\n")
            shown = {k: v for k, v in made.items() if k not in ("fitted", "steps", "trace")}
            print(" ".join(f"{key}={value}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("fit", description=__doc__)
    parser.add_argument(
        "methods", nargs="*", default=list(METHODS), metavar="METHOD",
        help=f"all by default: {', '.join(METHODS)}",
    )  # fmt: skip
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 7, 9, 13])
    parser.add_argument("--config", type=Path, default="config.yaml")
    parser.add_argument("--model", default="data/emoji-flux")
    parser.add_argument("--out", type=Path, default="build/peers/fits")
    parser.add_argument(
        "--limit", type=float, default=240,
        help="CPU seconds of a gradient descent at most, for each network call of the budget",
    )  # fmt: skip
    arguments = parser.parse_args()
    if unknown := sorted({*arguments.methods} - {*METHODS}):
        parser.error(f"no methods {unknown}; there are {', '.join(METHODS)}")
    main(arguments)

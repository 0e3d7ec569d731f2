"""cache-dit at the full steps of EigenCache's plans, beside its own mask and the plans themselves.

    python -m benchmarks.peers.masks --out data/benchmarks/cache_dit_masks.csv

from the project's folder after the main job, in an environment that has cache-dit. A mask carries a
plan's full steps alone; cache-dit's calibrators forecast the steps between.
"""

import argparse
import contextlib
import logging
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cache_dit
import pandas as pd
import torch
import yaml

from benchmarks.peers.cache_dit import BASE, CALIBRATORS, enabled, interval, masked, name
from benchmarks.peers.compare import footprint, quality, sampled
from benchmarks.peers.contestant import Contestant
from benchmarks.peers.sampling import cases_of
from eigencache.calibration.sampler import load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.export import computation_mask
from eigencache.plan import Plan
from eigencache.runtime import cached
from reproduction.experiment import Experiment
from reproduction.tables.tables import write_table

LABELS = ("EigenCache-design", "EigenCache")


@contextlib.contextmanager
def by_plan(plan: Plan, pipe):
    """Sample by a plan of ours."""
    with cached(pipe, plan):
        yield None


def by_mask(calibrator: str | None, mask: list[int], pipe):
    """Compute the steps of a mask; cache-dit forecasts the others."""
    config = cache_dit.DBCacheConfig(
        **BASE, steps_computation_mask=mask, steps_computation_policy="static"
    )
    return enabled(pipe, calibrator, config)


def contestants(plans: dict[str, Plan]) -> list[Contestant]:
    """Return cache-dit at its own interval and at each plan's full steps, and each plan itself."""
    theirs, found = f"cache-dit {version('cache-dit')}", []
    for calibrator in CALIBRATORS:
        steps, budget = next((len(p), len(p.full_steps)) for p in plans.values())
        own = partial(masked, calibrator, steps, **interval(steps, budget))
        found.append(Contestant(name(calibrator, "interval"), theirs, own, lambda budget: {}))
        for label, plan in plans.items():
            apply = partial(by_mask, calibrator, computation_mask(plan))
            method = name(calibrator, f"full steps of {label}")
            found.append(Contestant(method, theirs, apply, lambda budget: {}))
    ours = f"eigencache {version('eigencache')}"
    return found + [
        Contestant(label, ours, partial(by_plan, plan), lambda budget: {})
        for label, plan in plans.items()
    ]


def main(arguments: argparse.Namespace) -> None:
    config = Experiment(yaml.safe_load(Path("config.yaml").read_text())).config
    torch.set_num_threads(config.threads)
    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)  # otherwise ten lines each time it is enabled
    file = f"{arguments.full_steps}.safetensors"
    plans = {label: Plan.load(arguments.plans / label / file) for label in LABELS}
    pipe, shared = load_pipeline(arguments.model, config.dtype), config.arguments.stated
    cases = cases_of(read_prompts(config.prompts, arguments.num_prompts), config.seed)
    reference, _ = sampled(pipe, cases, shared)
    operations, rows = footprint(pipe, cases[0], shared).operations, []
    for contestant in contestants(plans):
        images, full_steps = sampled(pipe, cases, shared, contestant)
        taken = footprint(pipe, cases[0], shared, contestant)
        rows.append({
            "method": contestant.method, "source": contestant.source, "prompts": len(cases),
            "full_steps": full_steps, "compute": taken.operations / operations,
            **quality(images, reference),
        })  # fmt: skip
        print(rows[-1], flush=True)
    write_table(pd.DataFrame(rows).round(4), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("masks", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--model", default="data/emoji-flux")
    parser.add_argument("--plans", type=Path, default="results/emoji-flux/plans")
    parser.add_argument("--full-steps", type=int, default=9)
    parser.add_argument("--num-prompts", type=int, default=24, help="of the evaluation")
    main(parser.parse_args())

"""Costs: the seconds of a step and the memory of a cache, by tap, with one method at all taps.

The method is TaylorSeer of order 1 with its interval schedule and the same full steps at every tap:
as many as requested, or, if no interval gives that number, as close to it as possible.
One row per tap and image:

    tap, full_steps         where features are taken, and how many steps are full
    image                   which of the images that were sampled, from 0; each has its own prompt
    uncached_step_seconds   the median step of a run of the same image without a cache
    full_step_seconds       the median full step of the cached run
    skipped_step_seconds    and its median skipped step
    cache_mb                megabytes (1e6 bytes) that the cache held when it held most
    added_peak_mb           by how much the run's peak of memory on the GPU exceeded that of the run
                            without a cache; empty on a CPU
    device, threads         what was computed on

A step goes from its first call of a network to the end of the scheduler's step. The first step of
a run, which is slower than the others, is a full one. Taps that the pipeline refuses are left out.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from eigencache._upstream import device_of
from eigencache.calibration._calls import called, quiet
from eigencache.calibration.recording import timesteps_of
from eigencache.calibration.sampler import image_seed
from eigencache.commands.prompts import opened, read_calls
from eigencache.methods import METHODS
from eigencache.plan import TAPS, Plan
from eigencache.runtime import cached, watched
from reproduction.models.pipeline import add_pipeline, loaded
from reproduction.observing import following, held_bytes
from reproduction.tables.tables import write_table

Call = Mapping[str, Any]


class Steps(NamedTuple):
    """The costs of one run's steps: median seconds, and megabytes."""

    full_seconds: float
    skipped_seconds: float
    cache_mb: float
    peak_mb: float


def steps_of(
    pipe, call: Call, seed: int, plan: Plan | None = None, anchor_device: str | None = None
) -> Steps:
    """Sample one image, by a plan or in full, and return the costs of its steps."""
    held, device = [0], device_of(pipe)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with quiet(pipe), cached(pipe, plan, anchor_device) if plan else watched(pipe) as stats:
        with following(pipe, lambda _: held.append(held_bytes(pipe))):
            called(pipe, call, seed)
        peak = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0
        return Steps(stats.full_seconds, stats.skipped_seconds, max(held) / 1e6, peak)


def plans_by_tap(
    pipe, call: Call, seed: int, full_steps: int, timesteps, anchor_device: str | None = None
) -> dict[str, Plan]:
    """Return TaylorSeer's plan of order 1 for every tap at which the pipeline can be sampled.

    One image is sampled at each, which is slower than those that follow, and of no account.
    """
    plan, plans = nearest_plan(full_steps, timesteps), {}
    for tap in TAPS:
        plans[tap] = replace(plan, tap=tap)
        try:
            steps_of(pipe, call, seed, plans[tap], anchor_device)
        except ValueError as error:
            print(f"tap {tap} is left out: {error}")
            del plans[tap]
    return plans


def nearest_plan(full_steps: int, timesteps) -> Plan:
    """Return TaylorSeer's plan of order 1 whose number of full steps is nearest to `full_steps`.

    Raises:
        ValueError: no interval skips a step.
    """
    for budget in sorted(range(1, len(timesteps)), key=lambda n: (abs(n - full_steps), n)):
        with suppress(ValueError):
            return METHODS["TaylorSeer"].plan(budget, timesteps, order=1)
    raise ValueError(f"no interval skips any of {len(timesteps)} steps")


def costs(
    pipe, call: Call, seed: int, plans: Mapping[str, Plan], anchor_device: str | None = None
) -> Iterator[dict]:
    """Yield the costs of each tap for one image, next to those of a run without a cache."""
    uncached, device = steps_of(pipe, call, seed), device_of(pipe).type
    for tap, plan in plans.items():
        found = steps_of(pipe, call, seed, plan, anchor_device)
        yield {
            "tap": tap,
            "full_steps": len(plan.full_steps),
            "uncached_step_seconds": uncached.full_seconds,
            "full_step_seconds": found.full_seconds,
            "skipped_step_seconds": found.skipped_seconds,
            "cache_mb": found.cache_mb,
            "added_peak_mb": found.peak_mb - uncached.peak_mb if device == "cuda" else None,
            "device": device,
            "threads": torch.get_num_threads(),
        }


def main(arguments: argparse.Namespace) -> None:
    calls = read_calls(arguments.prompts)[: arguments.images]
    pipe = loaded(arguments, calls)
    first = {**arguments.arguments, **opened(calls[0])}
    timesteps = timesteps_of(pipe, first)
    plans = plans_by_tap(
        pipe, first, arguments.seed, arguments.full_steps, timesteps, arguments.anchor_device
    )
    rows = []
    for image, call in enumerate(tqdm(calls, desc="costs", unit="image")):
        seed, whole = image_seed(arguments.seed, image), {**arguments.arguments, **opened(call)}
        every = costs(pipe, whole, seed, plans, arguments.anchor_device)
        rows += [{"image": image} | row for row in every]
    write_table(pd.DataFrame(rows), arguments.table)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("costs", description=__doc__)
    add_pipeline(parser)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--images", type=int, required=True, help="how many to sample at each tap")
    parser.add_argument("--full-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the experiment")
    parser.add_argument("--anchor-device", nargs="?", help="where features are kept, such as cpu")
    parser.add_argument("--table", required=True, help="CSV to write")
    run(main, parser, outputs=["table"], sources=["prompts"], models=["model"])

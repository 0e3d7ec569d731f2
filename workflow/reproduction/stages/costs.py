"""Costs: what a step takes and what a cache holds, by tap, with one method at each.

The method is TaylorSeer of order 1 with its interval schedule, the same full steps at every tap: as
many as were asked for, or, where no interval gives so many, as near to that as one does.
One row a tap and image:

    tap, full_steps         where features are taken, and how many steps are full
    image                   which of the images that were sampled, from 0; each has its own prompt
    uncached_step_seconds   the median step of a run of the same image without a cache
    full_step_seconds       the median full step of the cached run
    skipped_step_seconds    and its median skipped step
    cache_mb                megabytes (1e6 bytes) that the cache held when it held most
    added_peak_mb           by how much the run's peak of memory on the GPU exceeded that of the run
                            without a cache; empty on a CPU
    device, threads         what was computed on

A step is a call of the transformer. Taps that a transformer has not are left out.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from tqdm import tqdm

from eigencache.calibration.sampler import Settings, device_of, image_seed, load_encoded, sample
from eigencache.commands.prompts import read_prompts
from eigencache.methods import METHODS
from eigencache.plan import TAPS, Plan
from eigencache.runtime import cached, held_bytes
from eigencache.runtime._taps import tapped
from eigencache.runtime.stats import Clock
from reproduction.models.check import verified
from reproduction.stages import LOW_MEMORY, run
from reproduction.tables.tables import write_table


class Steps(NamedTuple):
    """What the steps of one run took: seconds each, and megabytes."""

    seconds: list[float]
    cache_mb: float
    peak_mb: float


def steps_of(
    pipe, text: dict, settings: Settings, seed: int, plan: Plan | None = None,
    anchor_device: str | None = None,
) -> Steps:  # fmt: skip
    """Sample one image, by a plan or in full, and return what its steps took."""
    transformer, clock = pipe.transformer, Clock(device_of(pipe).type)
    begun, ended, held = [], [], []

    def end(*_):
        ended.append(clock.mark())
        held.append(held_bytes(transformer))

    hooks = [
        transformer.register_forward_pre_hook(lambda *_: begun.append(clock.mark())),
        transformer.register_forward_hook(end),
    ]
    try:
        with cached(transformer, plan, anchor_device) if plan else nullcontext():
            made = sample(pipe, text, settings, seed)
    finally:
        for hook in hooks:
            hook.remove()
    clock.finish()
    seconds = [clock.between(*pair) for pair in zip(begun, ended, strict=True)]
    return Steps(seconds, max(held) / 1e6, made.peak_memory_mb)


def plans_by_tap(transformer, full_steps: int, timesteps) -> dict[str, Plan]:
    """Return TaylorSeer's plan of order 1 for every tap that the transformer has."""
    plan, plans = nearest_plan(full_steps, timesteps), {}
    for tap in TAPS:
        try:
            tapped(transformer, tap)
        except ValueError as error:
            print(f"tap {tap} is left out: {error}")
        else:
            plans[tap] = replace(plan, tap=tap)
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
    pipe, text: dict, settings: Settings, seed: int, plans: Mapping[str, Plan],
    anchor_device: str | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Yield what each tap costs in one image, beside a run without a cache.

    Raises:
        ValueError: the transformer is called more than once a step.
    """
    uncached = steps_of(pipe, text, settings, seed)
    for tap, plan in plans.items():
        found = steps_of(pipe, text, settings, seed, plan, anchor_device)
        if len(found.seconds) != len(plan):
            raise ValueError(f"{len(found.seconds)} calls of the transformer in {len(plan)} steps")
        of_kind = {True: [], False: []}
        for is_full, seconds in zip(plan.full.tolist(), found.seconds, strict=True):
            of_kind[is_full].append(seconds)
        device = device_of(pipe).type
        yield {
            "tap": tap,
            "full_steps": len(plan.full_steps),
            "uncached_step_seconds": statistics.median(uncached.seconds),
            "full_step_seconds": statistics.median(of_kind[True]),
            "skipped_step_seconds": statistics.median(of_kind[False]),
            "cache_mb": found.cache_mb,
            "added_peak_mb": found.peak_mb - uncached.peak_mb if device == "cuda" else None,
            "device": device,
            "threads": torch.get_num_threads(),
        }


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts)[: arguments.images]
    pipe, texts = load_encoded(verified(arguments.model), prompts, settings, arguments.low_memory)
    sample(pipe, texts[0], settings, arguments.seed)  # the first is slower than those to come
    timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
    plans = plans_by_tap(pipe.transformer, arguments.full_steps, timesteps)
    rows = []
    for image, text in enumerate(tqdm(texts, desc="costs", unit="image")):
        seed = image_seed(arguments.seed, image)
        every = costs(pipe, text, settings, seed, plans, arguments.anchor_device)
        rows += [{"image": image} | row for row in every]
    write_table(pd.DataFrame(rows), arguments.table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("costs", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--images", type=int, required=True, help="how many to sample at each tap")
    parser.add_argument("--full-steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the experiment")
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument("--anchor-device", nargs="?", help="where features are kept, such as cpu")
    parser.add_argument("--table", required=True, help="CSV to write")
    run(main, parser, outputs=["table"], sources=["prompts"], models=["model"])

"""Sample: all budgets of one method over one shard of the prompts, with timing against full runs.

One job holds a method's every budget, since starting a job (importing, loading the model) costs
far more than a run of a small model, and since a full run beside each is what it is timed against.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from eigencache._files import replacing, sha256
from eigencache.calibration.sampler import (
    Sample,
    Settings,
    device_of,
    image_seed,
    load_encoded,
    sample,
)
from eigencache.commands.prompts import read_prompts
from eigencache.plan import FEWER_STEPS, FULL, Plan, PlanError, predicted_psnr
from eigencache.runtime import cached
from reproduction.models.check import verified
from reproduction.prompts import shard_indices
from reproduction.stages import LOW_MEMORY, run
from reproduction.tables.tables import write_table


@dataclass(frozen=True)
class Run:
    """One setting under which every prompt is sampled.

    Attributes:
        name: of the run, and of the folder of its images.
        num_steps: sampler steps.
        plan: what to cache by; None computes every step.
    """

    name: str
    num_steps: int
    plan: Plan | None = None

    @property
    def predicted_psnr(self) -> float:
        """What the plan says its images will have, in dB; nan if it says nothing."""
        return predicted_psnr(self.plan) if self.plan else math.nan


def sample_run(
    pipe, text, settings: Settings, seed: int, run: Run, anchor_device: str | None = None
) -> tuple[Sample, int]:
    """Return one image of a run, and the number of steps that were really computed in full."""
    applied = cached(pipe.transformer, run.plan, anchor_device) if run.plan else nullcontext()
    with applied as stats:
        made = sample(pipe, text, settings, seed, run.num_steps)
    return made, stats.full if stats else run.num_steps


def sample_shard(
    pipe, prompts: list[str], texts: Sequence[dict], indices: range, runs: list[Run],
    settings: Settings, seed: int, images: Path, timed: int, anchor_device: str | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Sample every run of every prompt of a shard, write the PNGs, and yield one record an image.

    Args:
        pipe: from `load_encoded`, with `texts`: the embeddings of the prompts of this shard.
        prompts: all prompts of the experiment.
        indices: those of this shard. The noise of prompt `i` is of `image_seed(seed, i)`.
        runs: what to sample.
        settings: how to call the pipeline.
        seed: of the experiment.
        images: the folder of the images: `RUN/INDEX.png`, lossless.
        timed: of how many prompts a full run is timed beside the others (`reference_seconds`).
        anchor_device: where a cache keeps features; by default where they are made.
    """
    reference = Run(FULL, settings.num_steps)
    if indices:  # the first calls of a process are slower than those to come
        sample_run(pipe, texts[0], settings, seed, reference)
    for position, index in enumerate(tqdm(indices, desc="sample", unit="prompt")):
        text, noise = texts[position], image_seed(seed, index)
        pair = None
        if position < timed and runs != [reference]:
            pair = sample_run(pipe, text, settings, noise, reference)[0].seconds
        for run_ in runs:
            made, computed = sample_run(pipe, text, settings, noise, run_, anchor_device)
            path = images / run_.name / f"{index:05d}.png"
            with replacing(path) as part:
                made.image.save(part, format="PNG")
            yield {
                "run": run_.name,
                "prompt_index": index,
                "prompt": prompts[index],
                "seed": noise,
                "num_steps": run_.num_steps,
                "full_steps": computed,
                "predicted_psnr": run_.predicted_psnr,
                "seconds": made.seconds,
                "reference_seconds": pair,
                "decode_seconds": made.decode_seconds,
                "peak_memory_mb": made.peak_memory_mb,
                "device": device_of(pipe).type,
                "threads": torch.get_num_threads(),
                "image": path.as_posix(),
                "sha256": sha256(path),
            }


def runs_of(label: str, method: str, settings: Settings, budgets, plans) -> list[Run]:
    """Return the runs of a method: one for each budget, or the one full run.

    Raises:
        PlanError: a plan was made for another number of steps.
    """
    if method == FULL:
        return [Run(FULL, settings.num_steps)]
    if method == FEWER_STEPS:
        return [Run(f"{label}-{budget:02d}", budget) for budget in budgets]
    loaded = [Plan.load(path) for path in plans]
    for path, plan in zip(plans, loaded, strict=True):
        if len(plan) != settings.num_steps:
            raise PlanError(
                f"{path}: made for {len(plan)} steps, not for the {settings.num_steps} of "
                "sampler.num_steps; delete it and run again"
            )
    return [Run(f"{label}-{sum(plan.full):02d}", settings.num_steps, plan) for plan in loaded]


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    indices = shard_indices(len(prompts), arguments.shard, arguments.shards)
    runs = runs_of(arguments.label, arguments.method, settings, arguments.budgets, arguments.plans)
    pipe, texts = load_encoded(
        verified(arguments.model), [prompts[i] for i in indices], settings, arguments.low_memory
    )
    loaded = time.perf_counter()
    records = pd.DataFrame(
        sample_shard(
            pipe, prompts, texts, indices, runs, settings, arguments.seed,
            Path(arguments.images), arguments.timed, arguments.anchor_device,
        )
    )  # fmt: skip
    records.insert(1, "method", arguments.label)
    write_table(records, arguments.records)
    sampled = time.perf_counter()
    print(f"prompts encoded and model loaded in {loaded - started:.1f} s, {len(records)} images "
          f"of {len(runs)} runs in {sampled - loaded:.1f} s on {device_of(pipe)}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser("sample", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--label", required=True, help="what the method is called here")
    parser.add_argument("--method", required=True, help="its name in the table of methods")
    parser.add_argument("--budgets", nargs="*", type=int, default=[])
    parser.add_argument("--plans", nargs="*", default=[], help="one for each budget")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--timed", type=int, default=4, help="prompts timed beside a full run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument(
        "--anchor-device", nargs="?", help="where a cache keeps features, such as cpu"
    )
    parser.add_argument("--images", required=True, help="folder to write RUN/INDEX.png into")
    parser.add_argument("--records", required=True, help="CSV to write, one row an image")
    run(main, parser, outputs=["records"], inputs=["plans"], sources=["prompts"], models=["model"])

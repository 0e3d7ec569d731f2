"""Sample: all budgets of some methods over one shard of the prompts, timed against full runs.

One job holds all budgets of a method, and with a small model several methods, since starting a job
(importing, loading the model) costs far more than a run of a small model, and since all of them are
timed against the same full runs.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from eigencache._checks import agrees, span
from eigencache._frames import hash_of_frames, write_frames
from eigencache._upstream import device_of
from eigencache.calibration.sampler import Sample, image_seed, sample
from eigencache.commands.prompts import opened, read_calls, text_of
from eigencache.plan import FEWER_STEPS, FULL, Plan, PlanError
from reproduction.flops import Meter
from reproduction.models.pipeline import add_pipeline, loaded
from reproduction.prompts import shard_indices
from reproduction.tables.tables import write_table

STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Run:
    """One setting under which every prompt is sampled.

    Attributes:
        name: of the run, and of the folder of its images.
        label: of the method.
        plan: the plan to sample by; None computes every step.
        changed: arguments of the call that differ from the experiment's.
    """

    name: str
    label: str
    plan: Plan | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def predicted_psnr(self) -> float:
        """The PSNR in dB that the plan predicts for its images; nan if it predicts none."""
        return self.plan.predicted_psnr if self.plan else math.nan


def sample_run(
    pipe, call: Mapping[str, Any], seed: int, run: Run, anchor_device: str | None = None
) -> Sample:
    """Return one image or video of a run."""
    return sample(pipe, {**call, **run.changed}, seed, run.plan, anchor_device)


def sample_shard(
    pipe, calls: Sequence[Mapping[str, Any]], indices: range, runs: list[Run],
    arguments: Mapping[str, Any], seed: int, images: Path, timed: int,
    anchor_device: str | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Sample every run of every prompt of a shard, write the PNGs, and yield one record per image.

    Args:
        pipe: a pipeline of diffusers.
        calls: the arguments that are each prompt's own, of all prompts of the experiment.
        indices: those of this shard. The noise of prompt `i` is of `image_seed(seed, i)`.
        runs: what to sample.
        arguments: of every call.
        seed: of the experiment.
        images: the folder of the images: `RUN/INDEX.png`, lossless; of a video a folder of frames,
            `RUN/INDEX/FRAME.png`.
        timed: of how many prompts a full run is timed beside the others (`reference_seconds`); if
            the runs begin with one, it is that.
        anchor_device: where a cache keeps features; by default where they are made.
    """
    reference, meter = Run(FULL, FULL), Meter(pipe)
    if indices:  # the first calls of a process are slower than later ones
        sample_run(pipe, {**arguments, **opened(calls[indices[0]])}, seed, reference)
        meter.operations()
    for position, index in enumerate(tqdm(indices, desc="sample", unit="prompt")):
        call, noise = {**arguments, **opened(calls[index])}, image_seed(seed, index)
        pair = None
        if position < timed and reference not in runs:
            pair = sample_run(pipe, call, noise, reference).seconds
            meter.operations()
        for run_ in runs:
            again = partial(sample_run, pipe, call, noise, run_, anchor_device)
            made = again()
            path = write_frames(made.frames, images / run_.name / f"{index:05d}")
            yield {
                "run": run_.name,
                "method": run_.label,
                "prompt_index": index,
                "prompt": text_of(calls[index]),
                "seed": noise,
                "num_steps": {**call, **run_.changed}.get(STEPS),
                "full_steps": made.full_steps,
                "predicted_psnr": run_.predicted_psnr,
                "seconds": made.seconds,
                "reference_seconds": pair,
                "decode_seconds": made.decode_seconds,
                "tflop": meter.operations(run_.plan, again) / 1e12,
                "peak_memory_mb": made.peak_memory_mb,
                "device": device_of(pipe).type,
                "threads": torch.get_num_threads(),
                "image": path.as_posix(),
                "sha256": hash_of_frames(path),
            }
            if run_ == reference and position < timed:
                pair = made.seconds


def runs_of(
    label: str, method: str, arguments: Mapping[str, Any], budgets: Sequence[int],
    plans: Sequence[str],
) -> list[Run]:  # fmt: skip
    """Return the runs of a method: one for each budget, or the one full run.

    Raises:
        PlanError: a plan was made for other arguments of the pipeline's call.
    """
    if method == FULL:
        return [Run(FULL, label)]
    if method == FEWER_STEPS:
        return [Run(f"{label}-{budget:02d}", label, changed={STEPS: budget}) for budget in budgets]
    loaded = [Plan.load(path) for path in plans]
    for path, plan in zip(plans, loaded, strict=True):
        for name, value in plan.arguments.items():
            if name in arguments and not agrees(value, arguments[name]):
                raise PlanError(
                    f"{path}: made for {name} {span(value)}, not for the {arguments[name]} of "
                    f"arguments.{name}; delete it and run again"
                )
    return [Run(f"{label}-{sum(plan.full):02d}", label, plan) for plan in loaded]


def main(arguments: argparse.Namespace) -> None:
    started = time.perf_counter()
    calls = read_calls(arguments.prompts, arguments.num_prompts)
    indices = shard_indices(len(calls), arguments.shard, arguments.shards)
    runs = [
        run
        for label, about in arguments.methods.items()
        for run in runs_of(
            label, about["method"], arguments.arguments, about["budgets"],
            [path for path in arguments.plans if Path(path).parent.name == label],
        )
    ]  # fmt: skip
    pipe = loaded(arguments, [calls[i] for i in indices])
    ready = time.perf_counter()
    records = pd.DataFrame(
        sample_shard(
            pipe, calls, indices, runs, arguments.arguments, arguments.seed,
            Path(arguments.images), arguments.timed, arguments.anchor_device,
        )
    )  # fmt: skip
    write_table(records, arguments.records)
    sampled = time.perf_counter()
    print(f"model loaded in {ready - started:.1f} s, {len(records)} images of {len(runs)} runs in "
          f"{sampled - ready:.1f} s on {device_of(pipe)}")  # fmt: skip


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("sample", description=__doc__)
    add_pipeline(parser)
    parser.add_argument(
        "--methods", type=json.loads, required=True,
        help='as JSON: {label: {"method": name, "budgets": [...]}}, in the order of sampling',
    )  # fmt: skip
    parser.add_argument("--plans", nargs="*", default=[], help="LABEL/NAME.safetensors each")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--timed", type=int, default=4, help="prompts timed beside a full run")
    parser.add_argument(
        "--anchor-device", nargs="?", help="where a cache keeps features, such as cpu"
    )
    parser.add_argument("--images", required=True, help="folder to write RUN/INDEX.png into")
    parser.add_argument("--records", required=True, help="CSV to write, one row an image")
    run(main, parser, outputs=["records"], inputs=["plans"], sources=["prompts"], models=["model"])

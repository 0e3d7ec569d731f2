"""Compare caches and solvers that run from their own code with EigenCache's plans.

    python -m benchmarks.peers.compare SOURCE --out TABLE.csv

from the project's folder, in an environment that has the source; `run` does so for every source,
and README.md says what the rows are.
"""

import argparse
import contextlib
import gc
import importlib
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.memory import forget_peak, process_peak_mb
from benchmarks.peers.contestant import Contestant, Study
from eigencache.calibration import sampler
from eigencache.calibration.sampler import (
    Sample,
    Settings,
    encode,
    image_seed,
    load_pipeline,
    sample,
)
from eigencache.commands.prompts import read_prompts
from eigencache.metrics._psnr import psnr
from eigencache.metrics._ssim import ssim
from reproduction.experiment import Experiment
from reproduction.tables.tables import write_table

BATCH = 16  # images sampled together for quality; time is measured one by one
SEARCHED = 4  # calibration prompts on which thresholds are searched for
NEAR = 0.3  # a search ends this near to the mean number of full steps asked for
FULL = Contestant("full", "", lambda pipe: contextlib.nullcontext(), lambda budget: {})
# Attention on a CPU, which torch's table of operations lacks.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    )
}
# What an image depends on, besides the model: its text, from `encode`, and the seed of its noise.
Case = tuple[dict[str, torch.Tensor], int]


def cases_of(pipe, prompts: list[str], seed: int, settings: Settings) -> list[Case]:
    """Return the text and the seed of every prompt."""
    return [
        (encode(pipe, prompt, settings), image_seed(seed, index))
        for index, prompt in enumerate(prompts)
    ]


@contextlib.contextmanager
def counted(transformer: nn.Module) -> Iterator[list]:
    """Yield a list that grows by one at every call which computes the middle of the stack.

    A block's own hooks would also see the calls that a cache answers. The query projection of its
    attention runs if and only if the attention is computed.
    """
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    calls = []
    middle = blocks[len(blocks) // 2].attn.to_q
    hook = middle.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def call(pipe, cases: list[Case], settings: Settings, num_steps: int | None, **options):
    """Return what the pipeline makes of some cases in one batch."""
    texts, seeds = zip(*cases, strict=True)
    options = {"output_type": "pt"} | options
    return sampler.call(pipe, sampler.together(texts), settings, seeds, num_steps, **options)


def sampled(
    pipe, cases: list[Case], settings: Settings, contestant: Contestant = FULL, **setting
) -> tuple[torch.Tensor, float]:
    """Return the images of some cases and the mean number of full steps.

    Returns:
        Images as float64 `[cases, 3, height, width]` from 0 to 1, not rounded to 8 bits; and the
        steps that really computed the middle of the stack.
    """
    size = 1 if contestant.alone else BATCH
    images, full_steps = [], 0
    for start in range(0, len(cases), size):
        group = cases[start : start + size]
        applied = contestant.apply(pipe, **setting)
        with applied as num_steps, counted(pipe.transformer) as calls:
            images.append(call(pipe, group, settings, num_steps).double().cpu())
        full_steps += len(calls) * len(group)
    return torch.cat(images), full_steps / len(cases)


def search(
    full_steps: Callable[[float], float], budget: int, bounds: tuple[float, float],
    tried: dict[float, float], rounds: int = 8,
) -> float:  # fmt: skip
    """Return the threshold whose number of full steps is nearest to a budget, by bisection.

    Args:
        full_steps: of a threshold; falling.
        budget: of full steps.
        bounds: of the threshold, above zero; it is halved on a scale of ratios.
        tried: thresholds tried before, with their full steps; those tried now are added.
        rounds: how often to halve.
    """
    for _ in range(rounds):
        low = max([t for t, found in tried.items() if found > budget], default=bounds[0])
        high = min([t for t, found in tried.items() if found <= budget], default=bounds[1])
        middle = float(f"{math.sqrt(low * high):.3g}")
        if middle in tried or any(abs(found - budget) < NEAR for found in tried.values()):
            break
        tried[middle] = full_steps(middle)
    return min(tried, key=lambda threshold: abs(tried[threshold] - budget))


def quality(images: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Return metrics of images, `[n, 3, height, width]` from 0 to 1, each a mean over images.

    `psnr` and `ssim` are of 8 bits, as everywhere in this project; `psnr_float` is of what comes
    before the rounding. SSIM is computed in single precision, which changes its seventh decimal.
    """
    pairs = list(zip(images.split(1), reference.split(1), strict=True))
    rounded = [((a * 255).round() / 255, (b * 255).round() / 255) for a, b in pairs]
    return {
        "psnr": statistics.fmean(psnr(*pair) for pair in rounded),
        "psnr_float": statistics.fmean(psnr(*pair) for pair in pairs),
        "ssim": statistics.fmean(ssim(a.float(), b.float()) for a, b in rounded),
    }


def cost(
    pipe, cases: list[Case], settings: Settings, contestant: Contestant = FULL, **setting
) -> dict[str, float]:
    """Return what an image takes, one at a time, each after a full run of the same case."""
    seconds, speedups, peaks = [], [], []
    for text, seed in cases:
        reference = sample(pipe, text, settings, seed).seconds
        with contestant.apply(pipe, **setting) as num_steps:
            forget_peak()
            made = sample(pipe, text, settings, seed, num_steps)
        seconds.append(made.seconds)
        speedups.append(reference / made.seconds)
        peaks.append(peak_memory_mb(pipe, made))
    return {
        "seconds": statistics.median(seconds),
        "speedup": statistics.median(speedups),
        "peak_memory_mb": max(peaks),
    }


def peak_memory_mb(pipe, made: Sample) -> float:
    """Return the most memory that sampling took: of the GPU, or of the process on a CPU."""
    return made.peak_memory_mb if pipe.device.type == "cuda" else process_peak_mb()


@dataclass(frozen=True)
class Footprint:
    """What a run leaves in memory and what it computes.

    Attributes:
        held_mb: the most megabytes of tensors alive at the end of a step, weights apart.
        operations: floating-point operations of the whole denoising loop.
    """

    held_mb: float
    operations: int


def footprint(
    pipe, case: Case, settings: Settings, contestant: Contestant = FULL, **setting
) -> Footprint:
    """Return the footprint of one run.

    Tensors are found among the objects that Python's garbage collector follows, and counted once
    where they share memory. Operations are those of matrix products.
    """
    most = 0

    def at_step_end(pipe, step, timestep, tensors):
        nonlocal most
        alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        most = max(most, sum(storages.values()))
        return {}

    watch = {"callback_on_step_end": at_step_end, "callback_on_step_end_tensor_inputs": []}
    with contestant.apply(pipe, **setting) as num_steps:
        gc.collect()
        gc.freeze()  # what is alive already is not looked at
        try:
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                call(pipe, [case], settings, num_steps, output_type="latent", **watch)
        finally:
            gc.unfreeze()
    return Footprint(most / 1e6, counter.get_total_flops())


def compare(
    pipe, contestants: list[Contestant], budgets: list[int], cases: list[Case],
    calibration: list[Case], settings: Settings, timed: int,
) -> Iterator[dict]:  # fmt: skip
    """Yield a row of the table for every contestant at every budget.

    Args:
        pipe: from `load_pipeline`.
        contestants: what to compare.
        budgets: numbers of full steps to come near to.
        cases: of the evaluation.
        calibration: cases on which thresholds are searched for.
        settings: of the full run.
        timed: how many of the cases are timed.
    """
    reference, _ = sampled(pipe, cases, settings)
    full = footprint(pipe, cases[0], settings)
    for contestant in contestants:
        tried: dict[float, float] = {}

        def full_steps(threshold: float, contestant=contestant) -> float:
            return sampled(pipe, calibration, settings, contestant, threshold=threshold)[1]

        for budget in budgets:
            setting = contestant.setting(budget)
            if setting is None:
                continue
            if contestant.thresholds:
                found = search(full_steps, budget, contestant.thresholds, tried)
                setting = setting | {"threshold": found}
            images, computed = sampled(pipe, cases, settings, contestant, **setting)
            taken = footprint(pipe, cases[0], settings, contestant, **setting)
            yield {
                "method": contestant.method,
                "source": contestant.source,
                "budget": budget,
                "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
                "prompts": len(cases),
                "full_steps": computed,
                "compute": taken.operations / full.operations,
                **quality(images, reference),
                **cost(pipe, cases[:timed], settings, contestant, **setting),
                "cache_memory_mb": taken.held_mb - full.held_mb,
            }


def main(arguments: argparse.Namespace) -> None:
    config = yaml.safe_load(arguments.config.read_text())
    config = Experiment(config, "workflow/schemas/config.schema.yaml").config
    torch.set_num_threads(config["threads"])
    settings, theirs = Settings(**config["sampler"]), config["calibration"]
    pipe = load_pipeline(arguments.model, settings.dtype)
    prompts = read_prompts(config["prompts"], arguments.num_prompts)
    cases = cases_of(pipe, prompts, config["seed"], settings)
    calibration = read_prompts(theirs["prompts"], theirs["num_prompts"])
    calibration = cases_of(pipe, calibration, theirs["seed"], settings)
    study = Study(
        settings.num_steps, arguments.plans, lambda pipe: call(pipe, calibration, settings, None)
    )
    # Imported here, since the environments do not have the same packages.
    source = importlib.import_module(f"benchmarks.peers.{arguments.source}")
    budgets = config["budgets"]
    if arguments.source == "solvers":
        budgets = [*budgets, settings.num_steps]
    rows = []
    for row in compare(
        pipe, source.contestants(study), budgets, cases, calibration[:SEARCHED], settings,
        arguments.timed,
    ):  # fmt: skip
        print("{source}: {method}, {setting}: {full_steps:.2f} full steps, {psnr:.2f} dB, "
              "{speedup:.2f} times as fast".format(**row), flush=True)  # fmt: skip
        rows.append(row)
    write_table(pd.DataFrame(rows).round(4), arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("compare", description=__doc__)
    parser.add_argument("source", choices=("solvers", "diffusers_hooks", "cache_dit", "ours"))
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--config", type=Path, default="config.yaml")
    parser.add_argument("--model", default="data/emoji-flux")
    parser.add_argument("--plans", type=Path, default="results/emoji-flux/plans")
    parser.add_argument("--num-prompts", type=int, help="evaluation prompts; by default all")
    parser.add_argument("--timed", type=int, default=3, help="of them, how many are timed")
    main(parser.parse_args())

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
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import forget_peak, process_peak_mb
from benchmarks.peers.contestant import Contestant, Study
from benchmarks.peers.sampling import STEPS, Arguments, Case, call, cases_of, middle
from eigencache.calibration.sampler import load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.metrics._psnr import psnr
from eigencache.metrics._ssim import ssim
from reproduction.experiment import Experiment
from reproduction.flops import CPU_ATTENTION
from reproduction.tables.tables import write_table

BATCH = 16  # images sampled together for quality; time is measured one by one
SEARCHED = 4  # calibration prompts on which thresholds are searched for
NEAR = 0.3  # a search ends this near to the mean number of full steps asked for
FULL = Contestant("full", "", lambda pipe: contextlib.nullcontext(), lambda budget: {})


@contextlib.contextmanager
def counted(transformer: nn.Module) -> Iterator[list]:
    """Yield a list that grows by one at every call which computes the middle of the stack."""
    calls = []
    hook = middle(transformer).register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def sampled(
    pipe, cases: list[Case], arguments: Arguments, contestant: Contestant = FULL, **setting
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
            images.append(call(pipe, group, arguments, num_steps).double().cpu())
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
    pipe, cases: list[Case], arguments: Arguments, contestant: Contestant = FULL, **setting
) -> dict[str, float]:
    """Return what an image takes, one at a time, each after a full run of the same case."""
    seconds, speedups, peaks = [], [], []
    for case in cases:
        reference = seconds_of(pipe, case, arguments)
        with contestant.apply(pipe, **setting) as num_steps:
            if pipe.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pipe.device)
            else:
                forget_peak()
            seconds.append(seconds_of(pipe, case, arguments, num_steps))
            peaks.append(peak_memory_mb(pipe))
        speedups.append(reference / seconds[-1])
    return {
        "seconds": statistics.median(seconds),
        "speedup": statistics.median(speedups),
        "peak_memory_mb": max(peaks),
    }


def seconds_of(pipe, case: Case, arguments: Arguments, num_steps: int | None = None) -> float:
    """Return the seconds of one image, from the first call of the network to the last latents.

    On a CPU they are seconds of its time.
    """
    begun: list[float] = []

    def now() -> float:
        if pipe.device.type == "cpu":  # other programs may take turns with this one
            return time.process_time()
        torch.cuda.synchronize(pipe.device)
        return time.perf_counter()

    def begin(*_) -> None:
        if not begun:
            begun.append(now())

    hook = pipe.transformer.register_forward_pre_hook(begin)
    try:
        call(pipe, [case], arguments, num_steps, output_type="latent")
    finally:
        hook.remove()
    return now() - begun[0]


def peak_memory_mb(pipe) -> float:
    """Return the most memory that was taken since `forget_peak`."""
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated(pipe.device) / 1e6
    return process_peak_mb()


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
    pipe, case: Case, arguments: Arguments, contestant: Contestant = FULL, **setting
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
                call(pipe, [case], arguments, num_steps, output_type="latent", **watch)
        finally:
            gc.unfreeze()
    return Footprint(most / 1e6, counter.get_total_flops())


def compare(
    pipe, contestants: list[Contestant], budgets: list[int], cases: list[Case],
    calibration: list[Case], arguments: Arguments, timed: int,
    known: Collection[tuple[str, int]] = (),
) -> Iterator[dict]:  # fmt: skip
    """Yield a row of the table for every contestant at every budget.

    Args:
        pipe: from `load_pipeline`.
        contestants: what to compare.
        budgets: numbers of full steps to come near to.
        cases: of the evaluation.
        calibration: cases on which thresholds are searched for.
        arguments: of every call.
        timed: how many of the cases are timed.
        known: methods and budgets that are left out.
    """
    reference, _ = sampled(pipe, cases, arguments)
    full = footprint(pipe, cases[0], arguments)
    for contestant in contestants:
        tried: dict[float, float] = {}

        def full_steps(threshold: float, contestant=contestant) -> float:
            return sampled(pipe, calibration, arguments, contestant, threshold=threshold)[1]

        for budget in budgets:
            setting = contestant.setting(budget)
            if setting is None or (contestant.method, budget) in known:
                continue
            fitted = {"fit_prompts": 0, "fit_calls": 0} | contestant.cost(budget)
            if contestant.thresholds:
                before = sum(tried.values())
                found = search(full_steps, budget, contestant.thresholds, tried)
                setting = setting | {"threshold": found}
                fitted["fit_prompts"] = max(fitted["fit_prompts"], len(calibration))
                fitted["fit_calls"] += round(len(calibration) * (sum(tried.values()) - before))
            images, computed = sampled(pipe, cases, arguments, contestant, **setting)
            taken = footprint(pipe, cases[0], arguments, contestant, **setting)
            yield {
                "method": contestant.method,
                "source": contestant.source,
                "budget": budget,
                "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
                "prompts": len(cases),
                "full_steps": computed,
                "compute": taken.operations / full.operations,
                **quality(images, reference),
                **cost(pipe, cases[:timed], arguments, contestant, **setting),
                "cache_memory_mb": taken.held_mb - full.held_mb,
                **fitted,
            }


def main(arguments: argparse.Namespace) -> None:
    config = yaml.safe_load(arguments.config.read_text())
    config = Experiment(config).config
    torch.set_num_threads(config.threads)
    shared, theirs = config.arguments.stated, config.calibration
    pipe = load_pipeline(arguments.model, config.dtype)
    prompts = read_prompts(config.prompts, arguments.num_prompts)
    cases = cases_of(prompts, config.seed)
    calibration = cases_of(read_prompts(theirs.prompts, theirs.num_prompts), theirs.seed)
    study = Study(
        shared[STEPS], arguments.fits, lambda pipe: call(pipe, calibration, shared, None),
        len(calibration),
    )  # fmt: skip
    # Imported here, since the environments do not have the same packages.
    source = importlib.import_module(f"benchmarks.peers.{arguments.source}")
    budgets = arguments.budgets
    if arguments.source == "solvers":
        budgets = [*budgets, shared[STEPS]]
    contestants = source.contestants(study)
    names = [contestant.method for contestant in contestants]
    if unknown := sorted({*arguments.methods} - {*names}):
        raise SystemExit(f"{arguments.source} has no methods {unknown}; it has {names}")
    contestants = [c for c in contestants if not arguments.methods or c.method in arguments.methods]
    rows = []
    if arguments.out.exists():
        rows = pd.read_csv(arguments.out, keep_default_na=False).to_dict("records")
    if other := {row["prompts"] for row in rows} - {len(cases)}:
        raise SystemExit(
            f"{arguments.out} has rows of {other} prompts, not of {len(cases)}: name another --out"
        )
    known = {(row["method"], row["budget"]) for row in rows}
    for row in compare(
        pipe, contestants, budgets, cases, calibration[:SEARCHED], shared,
        arguments.timed, known,
    ):  # fmt: skip
        print("{source}: {method}, {setting}: {full_steps:.2f} full steps, {psnr:.2f} dB, "
              "{speedup:.2f} times as fast".format(**row), flush=True)  # fmt: skip
        rows.append(row)
        write_table(pd.DataFrame(rows).round(4), arguments.out)  # what is finished stays


if __name__ == "__main__":
    parser = argparse.ArgumentParser("compare", description=__doc__)
    parser.add_argument("source", choices=("solvers", "diffusers_hooks", "cache_dit", "learned"))
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; what it has is kept")
    parser.add_argument("--config", type=Path, default="config.yaml")
    parser.add_argument("--model", default="data/emoji-flux")
    parser.add_argument("--fits", type=Path, default="build/peers/fits")
    parser.add_argument("--methods", nargs="+", default=[], help="of the source; by default all")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 7, 9, 13])
    parser.add_argument("--num-prompts", type=int, help="evaluation prompts; by default all")
    parser.add_argument("--timed", type=int, default=3, help="of them, how many are timed")
    main(parser.parse_args())

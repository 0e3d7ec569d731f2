"""How a plan made for one guidance scale, resolution or prompt set does on another.

    python -m benchmarks.carry_over models/emoji-flux data/benchmarks/carry_over.csv

The arguments are a fetched model and the table to write, which is printed too. It takes some ten
minutes on two cores; `--prompts 2` is a quick look.

There is one setting from which every other differs in one respect: 128 px, guidance 3.5, prompts of
one thing. Its plans are used on the others, and theirs on it. A row is a plan's method and
budget, the setting it was made for and the one it was used on; PSNR is of 8-bit images to those of
full runs of the latter, in dB, and a mean over `prompts` evaluation prompts:

    full_steps        the steps that really computed the network, counted
    psnr              of the plan that was carried over
    psnr_own          of a plan made for the setting that it is used on, by the same method
    psnr_fewer_steps  of sampling uncached in as many steps

Plans are made on calibration prompts alone, in equal numbers of runs for every setting; where there
are fewer prompts than runs, they take turns with new noise. The closed loop is smaller than by
default (`LOOP`), since it runs for many settings; so PSNR is not that of the main job.

- Prompts: of two things, such as "a panda and a red apple on a blue background".
- Resolution: emoji-flux is trained at 128 px alone; at 48 and 96 px it crops an emoji, at 192 px
  it repeats parts of it. What is measured is how near a cached run stays to the full run of the
  same size. Dynamic shifting gives each size its own timesteps, so plans are refused there unless
  they are carried over by `Plan.retimed`. Since the timesteps of these sizes differ by at most
  1.3 %, images of 128 px are also sampled with those of 4096 tokens, which FLUX.1 has at 1024 px.
- Guidance: other scales of the guidance embedding, one call of the network per step.
"""

import argparse
import functools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eigencache.calibration import Calibration, ClosedLoopMaker
from eigencache.calibration.recording import timesteps_of
from eigencache.calibration.sampler import image_seed, load_pipeline
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import OUTPUT
from eigencache.methods import METHODS
from eigencache.metrics._psnr import psnr
from eigencache.metrics.images import pixels
from eigencache.plan import Plan
from eigencache.runtime import cached
from reproduction.tables.tables import write_table

SEED, CALIBRATION_SEED = 2026, 7
OPEN, CLOSED = "EigenCache-design", "EigenCache"
# Half of the runs are fitted, the other half judge.
RUNS, LOOP = 16, {"anchors": 3, "reach": 1, "rounds": 1, "held_out": 8, "batch": 8}
BATCH = 16  # images that are sampled together
# The shift of 4096 tokens, which is that of FLUX.1 at 1024 px.
LARGE = {"base_shift": 1.15, "max_shift": 1.15}


@dataclass(frozen=True)
class Setting:
    """What plans are made for and used on.

    Attributes:
        name: what it differs in from the first setting.
        calibration: prompts; run `i` has the noise of `image_seed(CALIBRATION_SEED, i)`.
        evaluation: prompts by their index in the file, of which `image_seed(SEED, index)` is.
        arguments: what the pipeline is called with beside the prompt.
        scheduler: what to change in the scheduler's configuration.
    """

    name: str
    calibration: Sequence[str]
    evaluation: dict[int, str]
    arguments: Mapping[str, Any]
    scheduler: dict = field(default_factory=dict)


class Made(NamedTuple):
    """Where a plan is, and what it was made by and for."""

    method: str
    budget: int
    made_for: str
    path: Path


def settings_of(
    calibration: list[str], evaluation: list[str], arguments: Mapping[str, Any], prompts: int
) -> list[Setting]:
    """Return the settings, the first being that from which the others differ.

    Args:
        calibration, evaluation: all prompts; those of two things have an "and".
        arguments: of the first setting.
        prompts: how many evaluation prompts a setting has.

    Raises:
        ValueError: there are fewer of a kind, or none for calibration.
    """

    def of(name: str, is_two: bool, **changes) -> Setting:
        known = [prompt for prompt in calibration if (" and " in prompt) == is_two]
        judged = [(i, p) for i, p in enumerate(evaluation) if (" and " in p) == is_two]
        if not known or len(judged) < prompts:
            raise ValueError(
                f"{prompts} evaluation prompts of {name!r}, there are {len(judged)} and "
                f"{len(known)} for calibration: ask for fewer, or state other files"
            )
        runs = list(islice(cycle(known), RUNS))
        return Setting(name, runs, dict(judged[:prompts]), arguments, **changes)

    width = arguments["width"]
    base = of(f"{width} px", is_two=False)
    sizes = [
        replace(base, name=f"{size} px", arguments={**arguments, "height": size, "width": size})
        for size in (width * 3 // 8, width * 3 // 4, width * 3 // 2)
    ]
    return [
        base,
        of("two things", is_two=True),
        *sizes,
        replace(base, name="timesteps of 1024 px", scheduler=LARGE),
        *(
            replace(
                base,
                name=f"guidance {scale}",
                arguments={**arguments, "guidance_scale": scale},
            )
            for scale in (2.0, 5.0)
        ),
    ]


@functools.cache
def loaded(model: Path):
    """Return the model's pipeline, loaded once a process."""
    return load_pipeline(model, "float32")


def pipeline(model: Path, setting: Setting):
    """Return the model's pipeline with the scheduler of a setting."""
    pipe = loaded(model)
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **setting.scheduler)
    pipe = type(pipe)(**pipe.components | {"scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_of(prompt: str) -> dict[str, Any]:
    """Return the arguments that are a prompt's own."""
    return {"prompt": prompt}


def together(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arguments of one call for a batch: lists of texts, tensors joined."""
    parts = {name: [call[name] for call in calls] for name in calls[0]}
    return {k: torch.cat(v) if isinstance(v[0], torch.Tensor) else v for k, v in parts.items()}


def images(
    pipe, setting: Setting, prompts: dict[int, str], seed: int, output: str = "pil",
    **changed: Any,
) -> list:  # fmt: skip
    """Return the images of prompts by their index, sampled in batches."""
    made: list = []
    for start in range(0, len(prompts), BATCH):
        some = list(prompts.items())[start : start + BATCH]
        arguments = {**setting.arguments, **changed, **together([call_of(p) for _, p in some])}
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(some)
        noise = [torch.Generator().manual_seed(image_seed(seed, index)) for index, _ in some]
        made += pipe(**arguments, generator=noise, output_type=output).images
    return made


def calibration_of(pipe, setting: Setting) -> Calibration:
    """Return the calls on which plans for a setting are made."""
    calls = [call_of(prompt) for prompt in setting.calibration]
    return Calibration(pipe, calls, setting.arguments, CALIBRATION_SEED)


def make(
    model: Path, setting: Setting, budgets: list[int], threads: int, folder: Path
) -> list[Made]:
    """Make and save the plans for a setting, by every method and budget."""
    torch.set_num_threads(threads)
    pipe = pipeline(model, setting)
    calibration = calibration_of(pipe, setting)
    kernel = calibration.kernel(OUTPUT, batch=LOOP["batch"])
    closed = ClosedLoopMaker(calibration, METHODS[CLOSED], LOOP, kernel)
    found = []
    for method in (OPEN, CLOSED):
        for budget in budgets:
            if method == CLOSED:
                plan = closed.plan(budget)
            else:
                plan = METHODS[method].plan(budget, kernel.timesteps, kernel)
            path = folder / setting.name / method / f"{budget}.safetensors"
            plan.save(path)
            found.append(Made(method, budget, setting.name, path))
    return found


def use(model: Path, setting: Setting, made: list[Made], threads: int) -> list[dict]:
    """Return a row for every plan, used on a setting."""
    torch.set_num_threads(threads)
    pipe = pipeline(model, setting)

    def sampled(**changed: Any) -> list[torch.Tensor]:
        made = images(pipe, setting, setting.evaluation, SEED, **changed)
        return [pixels(image) for image in made]

    def quality(found: list[torch.Tensor]) -> float:
        return float(np.mean([psnr(a, b) for a, b in zip(found, full, strict=True)]))

    full = sampled()
    first = call_of(next(iter(setting.evaluation.values())))
    timesteps = timesteps_of(pipe, {**setting.arguments, **first})
    budgets = sorted({one.budget for one in made})
    fewer = {budget: quality(sampled(num_inference_steps=budget)) for budget in budgets}
    calls = -(-len(setting.evaluation) // BATCH)
    rows = []
    for one in made:
        with cached(pipe, Plan.load(one.path).retimed(timesteps)) as stats:
            found = quality(sampled())
        rows.append({
            "method": one.method,
            "budget": one.budget,
            "made_for": one.made_for,
            "used_on": setting.name,
            "prompts": len(full),
            "full_steps": stats.full / calls,
            "psnr": found,
            "psnr_fewer_steps": fewer[one.budget],
        })  # fmt: skip
    return rows


def with_own(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of plans that were carried over, with the PSNR of those that were not."""
    keys, is_own = ["method", "budget", "used_on"], rows.made_for == rows.used_on
    own = rows[is_own][[*keys, "psnr"]].rename(columns={"psnr": "psnr_own"})
    table = rows[~is_own].merge(own, "left", keys)
    table.insert(table.columns.get_loc("psnr") + 1, "psnr_own", table.pop("psnr_own"))
    return table


def carry_over(
    model: Path, settings: list[Setting], budgets: list[int], pool: Executor, threads: int = 1
) -> pd.DataFrame:
    """Return the table.

    Args:
        model: the folder of a fetched model.
        settings: the first one's plans are used on the others, and theirs on it.
        budgets: numbers of full steps.
        pool: what shares the work, a setting at a time.
        threads: of each worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        makings = {
            setting.name: pool.submit(make, model, setting, budgets, threads, Path(folder))
            # The longest first.
            for setting in sorted(settings, key=lambda s: -s.arguments["width"])
        }
        made = {name: job.result() for name, job in tqdm(makings.items(), "make", unit="setting")}
        base, *others = (made[setting.name] for setting in settings)
        plans = [sum(others, base), *(base + own for own in others)]
        usings = [
            pool.submit(use, model, setting, some, threads)
            for setting, some in zip(settings, plans, strict=True)
        ]
        rows = chain.from_iterable(job.result() for job in tqdm(usings, "use", unit="setting"))
        return with_own(pd.DataFrame(rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="CSV to write")
    parser.add_argument("--calibration", default="data/prompts/emoji-calibration.txt")
    parser.add_argument("--evaluation", default="data/prompts/emoji-evaluation.txt")
    parser.add_argument(
        "--arguments", type=json.loads, help="of the pipeline's call, as JSON",
        default='{"num_inference_steps": 50, "height": 128, "width": 128, "guidance_scale": 3.5, '
        '"max_sequence_length": 24}',
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=16, help="evaluation prompts of a setting")
    parser.add_argument("--budgets", type=int, nargs="+", default=[9])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a job")
    arguments = parser.parse_args()
    settings = settings_of(
        read_prompts(arguments.calibration), read_prompts(arguments.evaluation),
        arguments.arguments, arguments.prompts,
    )  # fmt: skip
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    with ProcessPoolExecutor(arguments.jobs, spawn) as pool:
        table = carry_over(arguments.model, settings, arguments.budgets, pool, arguments.threads)
    write_table(table.round(4), arguments.out)
    print(table.round(2).to_string(index=False))
    print(f"{arguments.out}: {len(table)} rows in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

"""How a plan made for one guidance scale, resolution or prompt set does on another.

    python benchmarks/carry_over.py models/emoji-flux data/benchmarks/carry_over.csv

The arguments are a fetched model and the table to write, which is printed too. It takes about 4
minutes on two idle cores; `--prompts 2 --budgets 9` is a quick look.

There is one setting from which every other differs in one respect: 64 px, no guidance, prompts of
anything but food. Its plans are used on the others, and theirs on it. A row is a plan's method and
budget, the setting it was made for and the one it was used on; PSNR is of 8-bit images to those of
full runs of the latter, in dB, and a mean over `prompts` evaluation prompts:

    full_steps        the steps that really computed the network, counted
    psnr              of the plan that was carried over
    psnr_own          of a plan made for the setting that it is used on, by the same method
    psnr_fewer_steps  of sampling uncached in as many steps

Plans are made on calibration prompts alone, in equal numbers of runs for every setting; where there
are fewer prompts than runs, they take turns with new noise. The closed loop is smaller than by
default (`LOOP`), since it runs for many settings; so PSNR is not that of the main job.

- Prompts: food alone, which is 6 calibration prompts.
- Resolution: emoji-flux is trained at 64 px alone; at 48 px it crops an emoji, at 96 px it repeats
  parts of it. What is measured is how near a cached run stays to the full run of the same size.
  Dynamic shifting gives each size its own timesteps, so plans are refused there unless they are
  carried over by `Plan.retimed`. Since the timesteps of these sizes differ by less than 0.5 %,
  images of 64 px are also sampled with those of 4096 tokens, which FLUX.1 has at 1024 px.
- Guidance: emoji-flux has no guidance embedding. Here it is classifier-free guidance by two passes
  a step with an empty negative prompt, both cached by the same plan. Its plans are made for the
  guided velocity: a forecast is linear and the same for both passes, so it forecasts that too.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eigencache.calibration.full_runs import full_runs
from eigencache.calibration.sampler import (
    Settings,
    call,
    encode,
    image_seed,
    load_pipeline,
    together,
)
from eigencache.closed_loop import ClosedLoop, refine
from eigencache.commands.prompts import read_prompts
from eigencache.emoji.data import COLOURS, caption, read_selection
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.metrics._psnr import psnr
from eigencache.metrics.images import pixels
from eigencache.plan import Plan
from eigencache.runtime import cached
from eigencache.runtime._taps import fingerprint
from reproduction.tables.tables import write_table

SEED, CALIBRATION_SEED = 2026, 7
OPEN, CLOSED = "EigenCache-design", "EigenCache"
# Half of the runs are fitted, the other half judge.
RUNS, LOOP = 16, ClosedLoop(anchors=3, reach=1, rounds=1, held_out=8, batch=8)
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
        sampler: how to call the pipeline.
        scheduler: what to change in the scheduler's configuration.
    """

    name: str
    calibration: Sequence[str]
    evaluation: dict[int, str]
    sampler: Settings
    scheduler: dict = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """How often the network is called in a step."""
        return 2 if self.sampler.true_cfg_scale > 1 else 1


class Made(NamedTuple):
    """Where a plan is, and what it was made by and for."""

    method: str
    budget: int
    made_for: str
    path: Path


def settings_of(
    calibration: list[str], evaluation: list[str], food: set[str], sampler: Settings, prompts: int
) -> list[Setting]:
    """Return the settings, the first being that from which the others differ.

    Args:
        calibration, evaluation: all prompts of each kind.
        food: those that are of food, and maybe others.
        sampler: of the first setting.
        prompts: how many evaluation prompts a setting has.

    Raises:
        ValueError: there are fewer of a kind, or none for calibration.
    """

    def of(name: str, is_food: bool, **changes) -> Setting:
        known = [prompt for prompt in calibration if (prompt in food) == is_food]
        judged = [(i, p) for i, p in enumerate(evaluation) if (p in food) == is_food]
        if not known or len(judged) < prompts:
            raise ValueError(
                f"{prompts} evaluation prompts of {name!r}, there are {len(judged)} and "
                f"{len(known)} for calibration: ask for fewer, or state other files"
            )
        runs = list(islice(cycle(known), RUNS))
        return Setting(name, runs, dict(judged[:prompts]), sampler, **changes)

    base = of(f"{sampler.width} px", is_food=False)
    sizes = [
        replace(base, name=f"{size} px", sampler=replace(sampler, height=size, width=size))
        for size in (sampler.width * 3 // 4, sampler.width * 3 // 2)
    ]
    return [
        base,
        of("food", is_food=True),
        *sizes,
        replace(base, name="timesteps of 1024 px", scheduler=LARGE),
        *(
            replace(base, name=f"guidance {scale}", sampler=replace(sampler, true_cfg_scale=scale))
            for scale in (2.0, 3.0)
        ),
    ]


@functools.cache
def loaded(model: Path, dtype: str):
    """Return the model's pipeline, loaded once a process."""
    return load_pipeline(model, dtype)


def pipeline(model: Path, setting: Setting):
    """Return the model's pipeline with the scheduler of a setting."""
    pipe = loaded(model, setting.sampler.dtype)
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **setting.scheduler)
    pipe = type(pipe)(**pipe.components | {"scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def images(
    pipe, setting: Setting, prompts: dict[int, str], seed: int, num_steps: int | None = None,
    output: str = "pil",
) -> list:  # fmt: skip
    """Return the images of prompts by their index, sampled in batches."""
    sampler, made = setting.sampler, []
    for start in range(0, len(prompts), BATCH):
        some = list(prompts.items())[start : start + BATCH]
        text = together([encode(pipe, prompt, sampler) for _, prompt in some])
        seeds = [image_seed(seed, index) for index, _ in some]
        made += call(pipe, text, sampler, seeds, num_steps, output_type=output)
    return made


@contextlib.contextmanager
def recording(scheduler) -> Iterator[list[torch.Tensor]]:
    """Record the velocity `[N, ...]` of every step that the scheduler takes in a `with` block."""
    step, velocities = scheduler.step, []

    def keep(velocity, *args, **kwargs):
        velocities.append(velocity)
        return step(velocity, *args, **kwargs)

    scheduler.step = keep
    try:
        yield velocities
    finally:
        del scheduler.step


def calibrated(pipe, setting: Setting) -> Kernel:
    """Return the kernel of the velocities that the sampler steps by: of both passes together."""
    prompts = dict(enumerate(setting.calibration))
    with recording(pipe.scheduler) as velocities:
        images(pipe, setting, prompts, CALIBRATION_SEED, output="latent")
    steps = setting.sampler.num_steps
    batches = [torch.stack(velocities[i : i + steps]) for i in range(0, len(velocities), steps)]
    runs = torch.cat(batches, 1).flatten(2).double().cpu().numpy()
    timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
    kept = {"tap": "output", "model": fingerprint(pipe.transformer)}
    kernels = [Kernel.of_run({"output": run}, timesteps, **kept) for run in runs.swapaxes(0, 1)]
    return sum(kernels[1:], kernels[0])


def make(
    model: Path, setting: Setting, budgets: list[int], threads: int, folder: Path
) -> list[Made]:
    """Make and save the plans for a setting, by every method and budget."""
    torch.set_num_threads(threads)
    pipe = pipeline(model, setting)
    kernel = calibrated(pipe, setting)
    sampler = setting.sampler
    texts = [encode(pipe, prompt, sampler) for prompt in setting.calibration]
    fitted = RUNS - LOOP.held_out
    runs = [
        full_runs(pipe, texts, sampler, CALIBRATION_SEED, part, LOOP.batch)
        for part in (range(fitted), range(fitted, RUNS))
    ]
    found = []
    for method in (OPEN, CLOSED):
        for budget in budgets:
            plan = METHODS[method].plan(budget, kernel.timesteps, kernel)
            if method == CLOSED:
                predictor = METHODS[method].parts(budget).predictor
                plan = refine(plan, predictor, kernel.matrix(), *runs, LOOP)
            path = folder / setting.name / method / f"{budget}.safetensors"
            plan.save(path)
            found.append(Made(method, budget, setting.name, path))
    return found


def use(model: Path, setting: Setting, made: list[Made], threads: int) -> list[dict]:
    """Return a row for every plan, used on a setting."""
    torch.set_num_threads(threads)
    pipe = pipeline(model, setting)

    def sampled(num_steps: int | None = None) -> list[torch.Tensor]:
        return [
            pixels(image) for image in images(pipe, setting, setting.evaluation, SEED, num_steps)
        ]

    def quality(found: list[torch.Tensor]) -> float:
        return float(np.mean([psnr(a, b) for a, b in zip(found, full, strict=True)]))

    full = sampled()
    timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
    fewer = {budget: quality(sampled(budget)) for budget in sorted({one.budget for one in made})}
    calls = setting.passes * -(-len(setting.evaluation) // BATCH)
    rows = []
    for one in made:
        with cached(pipe.transformer, Plan.load(one.path).retimed(timesteps)) as stats:
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
            for setting in sorted(settings, key=lambda s: -s.sampler.width)  # the longest first
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
    parser.add_argument("--emoji", default="data/emoji/emoji.tsv", help="says what is food")
    parser.add_argument("--sampler", default='{"height": 64, "width": 64, "dtype": "float32", '
                        '"max_sequence_length": 16}', help="settings, as JSON")  # fmt: skip
    parser.add_argument("--prompts", type=int, default=16, help="evaluation prompts of a setting")
    parser.add_argument("--budgets", type=int, nargs="+", default=[9, 18])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a job")
    arguments = parser.parse_args()
    food = {
        caption(emoji, colour)
        for emoji in read_selection(arguments.emoji)
        if emoji.group == "food"
        for colour in COLOURS
    }
    settings = settings_of(
        read_prompts(arguments.calibration), read_prompts(arguments.evaluation), food,
        Settings(**json.loads(arguments.sampler)), arguments.prompts,
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

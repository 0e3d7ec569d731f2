"""How plans fitted at one or several guidance scales do at others.

    python -m benchmarks.guidance data/emoji-flux data/benchmarks/guidance.csv

The arguments are a model and the table to write. Guidance is that of the model's guidance embedding
(`guidance_scale`), one call of the network per step; 1 is none. Plans have 9 of 50 steps in full,
and are made on calibration prompts alone; for a plan made at several scales, the prompts take
turns. The built-in plan is of other models, and made for the scale that it is used at. `ridge` is
how strongly the fit of each gap is held to its base forecast. `--prompts 2` is a quick look. Plans
that the table has already are kept, so that a run which was stopped goes on. The table in
data/benchmarks took half an hour of a busy core.

A row is a method, the scales that its plan was made at, and one at which it was used:

    psnr        of 8-bit images to those of full runs, in dB: the mean over evaluation prompts
    full_steps  the steps that computed the network
    prompts     how many evaluation prompts
    runs        how many calibration prompts
    calls       images times steps that the network computed to make the plan
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from eigencache import built_in
from eigencache.calibration import Calibration, ClosedLoopMaker
from eigencache.calibration.quality import Judge
from eigencache.calibration.recording import timesteps_of
from eigencache.calibration.sampler import image_seed
from eigencache.methods import METHODS
from eigencache.plan import Plan
from eigencache.runtime._built_in import kind_of, levels_of

FULL_STEPS, SEED, CALIBRATION_SEED = 9, 2026, 7
ARGUMENTS = {
    "num_inference_steps": 50, "height": 128, "width": 128, "max_sequence_length": 24,
}  # fmt: skip
# The design; and, as OLSS has it, with outputs taken for those of undisturbed runs.
DESIGNS = {
    "EigenCache-design": {},
    "EigenCache-design, undisturbed": {"response": 0},
}
FITTED: dict[str, dict] = {
    "EigenCache": {},
    "EigenCache, ridge 0.1": {"ridge": 0.1},
    "EigenCache, ridge 1": {"ridge": 1.0},
}
MADE_AT = [(1.0,), (3.0,), (1.0, 3.0)]
OTHERS: dict[str, dict] = {"TaylorSeer": {"order": 1}, "HiCache": {"order": 2, "scale": 0.5}}
USED_AT = (1.0, 2.0, 3.0, 4.0, 5.0)


def main(model: str, out: Path, prompts: int, runs: int) -> None:
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    folder = Path("data/prompts")
    evaluation = (folder / "emoji-evaluation.txt").read_text().splitlines()
    calibration = (folder / "emoji-calibration.txt").read_text().splitlines()[:runs]
    judges = {scale: judge_of(pipe, evaluation, prompts, guidance_scale=scale) for scale in USED_AT}
    rows: list[dict] = []
    if out.exists():
        table = pd.read_csv(out, dtype={"made_at": str}, keep_default_na=False)
        rows = table.to_dict("records")

    def known(method: str, made_at: tuple[float, ...]) -> bool:
        found = [row for row in rows if (row["method"], row["made_at"]) == (method, text(made_at))]
        return len(found) == len(USED_AT)

    def add(
        method: str, made_at: tuple[float, ...], plan_at: Callable[[float], Plan], calls: int
    ) -> None:
        for scale, judge in tqdm(judges.items(), desc=f"{method} made at {made_at}"):
            plan = plan_at(scale)
            rows.append({
                "method": method, "made_at": text(made_at),
                "used_at": scale, "full_steps": int(plan.full.sum()), "psnr": judge.psnr(plan),
                "prompts": prompts, "runs": runs, "calls": calls,
            })  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).round({"psnr": 2}).to_csv(out, index=False)

    def always(plan: Plan) -> Callable[[float], Plan]:
        return lambda scale: plan

    for made_at in MADE_AT:
        if all(known(method, made_at) for method in (*DESIGNS, *FITTED)):
            continue
        calls = [
            {"prompt": prompt, "guidance_scale": scale}
            for prompt, scale in zip(calibration, cycle(made_at), strict=False)
        ]
        calibrated = Calibration(pipe, calls, ARGUMENTS, CALIBRATION_SEED)
        maker = ClosedLoopMaker(calibrated, METHODS["EigenCache"], {})
        timesteps, kernel, design = maker.runs.timesteps, maker.kernel, METHODS["EigenCache-design"]
        for name, options in DESIGNS.items():
            if not known(name, made_at):
                plan = design.plan(FULL_STEPS, timesteps, kernel, **options)
                add(name, made_at, always(plan), maker.runs.computed)
        for name, options in FITTED.items():
            if not known(name, made_at):
                fitting = maker
                if options:
                    fitting = ClosedLoopMaker(calibrated, METHODS["EigenCache"], options)
                plan = fitting.plan(FULL_STEPS)
                computed = fitting.runs.computed + fitting.held_out.computed
                add(name, made_at, always(plan), computed)
    timesteps = np.array(timesteps_of(pipe, ARGUMENTS | {"prompt": calibration[0]}))
    for name, options in OTHERS.items():
        if not known(name, ()):
            plan = METHODS[name].plan(FULL_STEPS, timesteps, tap="output", **options)
            add(name, (), always(plan), 0)
    if not known(built_in.METHOD, ()):
        others = [s for s in built_in.sources() if s.model != Path(model).name]

        def plan_at(scale: float) -> Plan:
            levels = levels_of(pipe.scheduler, timesteps)
            kind = kind_of(pipe.scheduler)
            return built_in.Design(kind, levels, timesteps, scale, others).plan(FULL_STEPS)

        add(built_in.METHOD, (), plan_at, 0)


def judge_of(pipe: Any, evaluation: Sequence[str], count: int, **arguments: Any) -> Judge:
    """Return what judges plans by so many of these prompts, taken evenly.

    Args:
        pipe: the pipeline.
        evaluation: prompts; that at index `i` has the noise of `image_seed(SEED, i)`.
        count: how many of them.
        arguments: of the calls, beside `ARGUMENTS` and the prompt.
    """
    chosen = np.linspace(0, len(evaluation) - 1, count).round().astype(int).tolist()
    calls = [ARGUMENTS | arguments | {"prompt": evaluation[i]} for i in chosen]
    return Judge(pipe, calls, [image_seed(SEED, i) for i in chosen])


def text(scales: tuple[float, ...]) -> str:
    """Return guidance scales as the table has them."""
    return " ".join(f"{scale:g}" for scale in scales)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=8, help="of the evaluation")
    parser.add_argument("--runs", type=int, default=24, help="of the calibration")
    arguments = parser.parse_args()
    main(arguments.model, arguments.out, arguments.prompts, arguments.runs)

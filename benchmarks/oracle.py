"""How much a choice of the plan for each prompt could gain over one plan for all.

    python -m benchmarks.oracle data/emoji-flux data/benchmarks/oracle.csv

The arguments are a model and the table to write. The plans are those that the closed loop fits on
its way, on calibration prompts, at the same budget: the best `PLANS` of them. An oracle takes for
each evaluation prompt the plan that is the best for it, which no rule can know beforehand. What it
gains over the plan that is the best on the calibration prompts bounds what any decision in the
course of sampling can gain by choosing among these plans. The table in data/benchmarks took about
ten minutes on one core.

A row is a prompt at a budget. Decibels are -10 log10 of the mean square error of the final latents:

    shared   by the plan that is the best on the calibration prompts, before its polish
    oracle   by the best plan for this prompt
    closed   by the closed loop's result, which is polished
    plans    how many plans the oracle chooses from
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline

from eigencache.calibration import Calibration, ClosedLoopMaker
from eigencache.calibration.sampler import image_seed
from eigencache.calibration.simulator import Simulator
from eigencache.closed_loop import ClosedLoop, Sampled
from eigencache.methods import METHODS

PLANS, BUDGETS, SEED, CALIBRATION_SEED = 50, (5, 9), 2026, 7
ARGUMENTS = {
    "num_inference_steps": 50, "height": 128, "width": 128, "max_sequence_length": 24,
}  # fmt: skip


class Remembering(ClosedLoop):
    """A closed loop that keeps every sampling that it fits."""

    found: list[Sampled]

    def fit(self, *arguments, **options) -> Sampled:
        made = super().fit(*arguments, **options)
        self.found.append(made._replace(features=(), final=[]))
        return made


def decibels(runs: Simulator, plan: Sampled) -> np.ndarray:
    """Return the decibels of each image, float64 `[N]`."""
    final, _ = runs.run(plan.full, plan.weights)
    return -10 * np.log10(np.maximum(np.square(runs.errors(final)).mean(1), 1e-30))


def main(model: str, out: Path, prompts: int, runs: int) -> None:
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    folder = Path("data/prompts")
    texts = {
        kind: (folder / f"emoji-{kind}.txt").read_text().splitlines()
        for kind in ("calibration", "evaluation")
    }
    calls = [{"prompt": text} for text in texts["calibration"][:runs]]
    maker = ClosedLoopMaker(
        Calibration(pipe, calls, ARGUMENTS, CALIBRATION_SEED), METHODS["EigenCache"], {}
    )
    judged = Simulator(
        pipe, [{"prompt": text} for text in texts["evaluation"][:prompts]],
        [image_seed(SEED, i) for i in range(prompts)], ARGUMENTS, sparse=(),
    )  # fmt: skip
    rows = []
    for budget in BUDGETS:
        plan, base = maker.setting(budget)
        loop = Remembering()
        object.__setattr__(loop, "found", [])
        start = loop.begin(maker.runs, base, plan.full_steps)
        result = loop.polish(maker.runs, maker.held_out, loop.exchange(maker.runs, base, start))
        plans = sorted({s.steps: s for s in loop.found}.values(), key=lambda s: -s.decibels)[:PLANS]
        table = np.array([decibels(judged, plan) for plan in plans])
        closed = decibels(judged, result)
        for i in range(prompts):
            rows.append({
                "full_steps": budget, "prompt_index": i, "shared": table[0, i],
                "oracle": table[:, i].max(), "closed": closed[i], "plans": len(plans),
            })  # fmt: skip
        pd.DataFrame(rows).round(2).to_csv(out, index=False)
        means = pd.DataFrame(rows).groupby("full_steps")[["shared", "oracle", "closed"]].mean()
        print(means.round(2).to_string(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=24, help="of the evaluation")
    parser.add_argument("--runs", type=int, default=16, help="of the calibration")
    arguments = parser.parse_args()
    main(arguments.model, arguments.out, arguments.prompts, arguments.runs)

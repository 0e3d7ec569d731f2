"""What a fit takes and gives, by the number of calibration prompts.

    python -m benchmarks.fit_cost data/emoji-flux data/benchmarks/fit_cost.csv

The arguments are a model and the table to write. Plans have 9 of 50 steps in full and are made at
the pipeline's own guidance, on calibration prompts alone. Numbers of prompts that the table has
already are kept, so that a run which was stopped goes on. The table in data/benchmarks took
20 minutes of a busy core.

A row is a method and a number of calibration prompts:

    prompts     calibration prompts; half of those of the closed loop judge the fit, 16 at most
    calls       images times steps that the network computed to make the plan
    psnr        of 8-bit images to those of full runs, in dB: the mean over evaluation prompts
    evaluation  how many evaluation prompts
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from benchmarks.guidance import ARGUMENTS, CALIBRATION_SEED, FULL_STEPS, judge_of
from benchmarks.rows import append, read
from eigencache.calibration import Calibration, ClosedLoopMaker
from eigencache.commands.prompts import read_prompts
from eigencache.methods import METHODS

PROMPTS, EVALUATION = (2, 4, 8, 16, 32), 12
DESIGN, CLOSED = "EigenCache-design", "EigenCache"
COLUMNS = ("method", "prompts", "calls", "psnr", "evaluation")


def main(model: str, out: Path, counts: list[int], evaluation: int) -> None:
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    judge = judge_of(pipe, read_prompts("data/prompts/emoji-evaluation.txt"), evaluation)
    prompts = read_prompts("data/prompts/emoji-calibration.txt", max(counts))
    done = {int(row["prompts"]) for row in read(out) if row["method"] == CLOSED}
    for count in (count for count in counts if count not in done):
        calibration = Calibration(
            pipe, [{"prompt": prompt} for prompt in prompts[:count]], ARGUMENTS, CALIBRATION_SEED
        )
        maker = ClosedLoopMaker(calibration, METHODS[CLOSED], {})
        runs, held_out = maker.runs, maker.held_out
        design, calls = maker.setting(FULL_STEPS)[0], runs.computed
        closed = maker.plan(FULL_STEPS)
        rows = [
            (DESIGN, runs.count, calls, round(judge.psnr(design), 2), evaluation),
            (CLOSED, count, runs.computed + held_out.computed, round(judge.psnr(closed), 2),
             evaluation),
        ]  # fmt: skip
        append(out, COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=PROMPTS)
    parser.add_argument("--evaluation", type=int, default=EVALUATION, help="prompts")
    arguments = parser.parse_args()
    main(arguments.model, arguments.out, arguments.counts, arguments.evaluation)

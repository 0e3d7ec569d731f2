"""Refine: make the plans of one method with the pipeline.

One plan for each budget, fitted in closed loop; or the cheapest plan of any method for a quality
(`psnr` in dB among the options).
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from eigencache.calibration import Calibration, ClosedLoopMaker, plan_with
from eigencache.commands.prompts import opened, read_calls
from eigencache.kernel import Kernel
from eigencache.methods import FEWEST, METHODS, check_wish
from reproduction.models.pipeline import add_pipeline, loaded


def main(arguments: argparse.Namespace) -> None:
    spec = json.loads(arguments.method)
    method = METHODS[spec.pop("method")]
    kernel = Kernel.load(arguments.kernel) if arguments.kernel else None
    quality, tap = spec.pop("psnr", None), spec.pop("tap", None)
    calls = read_calls(arguments.prompts, arguments.num_prompts)
    budget = None if quality else FEWEST
    check_wish(method, budget, quality, tap, spec, len(calls))  # before loading
    pipe = loaded(arguments, calls)
    calls = [opened(call) for call in calls]
    calibration = Calibration(pipe, calls, arguments.arguments, arguments.seed)
    paths = [Path(path) for path in arguments.plans]
    if quality is not None:
        plan = plan_with(
            calibration, method, psnr=quality, options=spec, tap=tap, kernel=kernel,
            report=tqdm.write,
        )  # fmt: skip
        plan.save(paths[0])
        return
    maker = ClosedLoopMaker(calibration, method, spec, report=tqdm.write)
    for path in tqdm(paths, desc="refine", unit="plan"):
        maker.plan(int(path.stem)).save(path)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("refine", description=__doc__)
    add_pipeline(parser)
    parser.add_argument(
        "--kernel", nargs="?", help="of the kind the method wants; a closed loop makes its own"
    )
    parser.add_argument("--method", required=True, help='as JSON: {"method": name, options ...}')
    parser.add_argument("--prompts", required=True, help="calibration prompts")
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--seed", type=int, required=True, help="of the calibration")
    parser.add_argument(
        "--plans",
        nargs="+",
        required=True,
        help="files to write, BUDGET.safetensors; or one file, of the plan for a quality",
    )
    run(main, parser, outputs=["plans"], inputs=["kernel"], sources=["prompts"], models=["model"])

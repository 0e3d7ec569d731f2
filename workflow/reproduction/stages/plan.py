"""Plan: make the plans of one method, one for each budget, from a kernel."""

import argparse
import json
import math
from pathlib import Path

from eigencache.design import with_predicted_error
from eigencache.kernel import Kernel
from eigencache.methods import METHODS


def main(arguments: argparse.Namespace) -> None:
    spec = json.loads(arguments.method)
    name = spec.pop("method")
    kernel = Kernel.load(arguments.kernel)
    for path in map(Path, arguments.plans):
        plan = METHODS[name].plan(int(path.stem), kernel.timesteps, kernel, **spec)
        plan.save(path)
        line = f"{path}: full steps {list(plan.full_steps)}"
        error = with_predicted_error(plan, kernel).predicted_error
        if not math.isnan(error):
            line += f"; predicted error {error:.5f}"
        print(line)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("plan", description=__doc__)
    parser.add_argument("--kernel", required=True, help="of the kind the method wants")
    parser.add_argument("--method", required=True, help='as JSON: {"method": name, options ...}')
    parser.add_argument(
        "--plans", nargs="+", required=True, help="files to write, BUDGET.safetensors"
    )
    run(main, parser, outputs=["plans"], inputs=["kernel"])

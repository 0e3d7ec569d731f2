"""Write a plan for use without EigenCache: as a scheduler of diffusers, or a mask for cache-dit.

The scheduler is one Python file, which says how to use it and what it cannot do. With --model its
config is written beside it. With --prompts too, the first prompt is sampled by the plan and by the
scheduler, and nothing is written if the results differ; without, nothing tells whether they do.
The mask is printed: 1 for each full step, 0 for the others.

examples:
  eigencache export --plan plan.safetensors --out scheduler
  eigencache export --plan plan.safetensors --model data/emoji-flux \\
      --prompts data/prompts/emoji-calibration.txt --out scheduler
  eigencache export --plan plan.safetensors --mask
"""

import argparse
import json
from pathlib import Path

from eigencache.commands._common import Calls, check_folder
from eigencache.commands._flags import SHORT, add_call, add_model
from eigencache.export import computation_mask, export_scheduler, scheduler_class
from eigencache.plan import Plan
from eigencache.sharing import load_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan and what to write."""
    parser.add_argument("--plan", metavar="PLAN", required=True, help="a file, or user/repo")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, metavar="FOLDER", help="to write the scheduler into")
    wanted.add_argument(
        "--mask", action="store_true", help="print cache-dit's steps_computation_mask"
    )
    add_model(parser, required=False)
    add_call(parser, "what the plan was made with holds")


def run(arguments: argparse.Namespace) -> None:
    """Write the scheduler, or print the mask."""
    if not arguments.prompts:
        _refuse_idle(arguments)
    plan = load_plan(arguments.plan)
    if arguments.mask:
        print(json.dumps(computation_mask(plan)))
        return
    check_folder(arguments.out)
    if arguments.prompts:
        print(_checked(plan, arguments))
        return
    scheduler = None
    if arguments.model:
        from diffusers import DDIMScheduler

        config = DDIMScheduler.load_config(arguments.model, subfolder="scheduler")  # of any class
        scheduler = scheduler_class(plan.scheduler or config["_class_name"]).from_config(config)
    print(export_scheduler(plan, arguments.out, scheduler))


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if the command line says how to call a pipeline that is not called."""
    names = ("pipeline", "num_prompts", "low_memory", "threads", "arguments", "dtype")
    flags = {f"--{name.replace('_', '-')}": name for name in names}
    for flag, name in (flags | {flag: name for flag, name, _, _ in SHORT}).items():
        value = getattr(arguments, name)
        if value is not None and value is not False:
            raise ValueError(f"{flag}: nothing is sampled without --prompts; state a file of them")


def _checked(plan: Plan, arguments: argparse.Namespace) -> Path:
    """Write the scheduler after comparing it with the plan on the first prompt."""
    if not arguments.model:
        raise ValueError("--prompts: state the --model to sample the first of them with")
    calls = Calls(arguments, plan)
    return plan.export_scheduler(arguments.out, pipe=calls.pipeline(), **calls[0])

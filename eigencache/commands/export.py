"""Write a plan for use without EigenCache: as a scheduler of diffusers, or a mask for cache-dit.

The scheduler is one Python file, which says how to use it and what it cannot do. With --model its
config is written beside it. The mask is printed: 1 for each full step, 0 for the others.
"""

import argparse
import json
from pathlib import Path

from eigencache.commands._common import check_folder
from eigencache.export import computation_mask, export_scheduler, scheduler_class
from eigencache.sharing import load_plan

EXAMPLES = """\
examples:
  eigencache export --plan plan.safetensors --out scheduler
  eigencache export --plan plan.safetensors --model data/emoji-flux --out scheduler
  eigencache export --plan plan.safetensors --mask
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan and what to write."""
    parser.add_argument("--plan", metavar="PLAN", required=True, help="a file, or user/repo")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, metavar="FOLDER", help="to write the scheduler into")
    wanted.add_argument(
        "--mask", action="store_true", help="print cache-dit's steps_computation_mask"
    )
    parser.add_argument(
        "--model", metavar="MODEL",
        help="folder or hub id of the pipeline whose scheduler's config is written too",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Write the scheduler, or print the mask."""
    plan = load_plan(arguments.plan)
    if arguments.mask:
        print(json.dumps(computation_mask(plan)))
        return
    check_folder(arguments.out)
    scheduler = None
    if arguments.model:
        from diffusers import DDIMScheduler

        config = DDIMScheduler.load_config(arguments.model, subfolder="scheduler")  # of any class
        scheduler = scheduler_class(plan.scheduler or config["_class_name"]).from_config(config)
    print(export_scheduler(plan, arguments.out, scheduler))

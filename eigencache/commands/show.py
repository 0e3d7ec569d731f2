"""Say what a plan is: its steps, its method, and what it was made for.

It is a file of `eigencache plan`, of `Plan.save` or of the workflow, or in a repository of a hub.

examples:
  eigencache show plan.safetensors
  eigencache show user/repo
"""

import argparse
import json

from eigencache.sharing import load_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan."""
    parser.add_argument("plan", metavar="PLAN", help="a file, .safetensors, or user/repo")


def run(arguments: argparse.Namespace) -> None:
    """Print what the plan says."""
    plan = load_plan(arguments.plan)
    told = {
        "method": plan.method,
        "steps": f"{len(plan)}, timesteps {plan.timesteps[0]:g} to {plan.timesteps[-1]:g}",
        "full steps": f"{len(plan.full_steps)}: {' '.join(map(str, plan.full_steps))}",
        "tap": plan.tap,
        "streams": len(plan.streams) or None,
        "model": plan.model or "any",
        "arguments": json.dumps(dict(plan.arguments)) if plan.arguments else None,
        "pipeline": plan.pipeline,
        "scheduler": plan.scheduler,
        "dtype": plan.source.get("dtype"),
        "predicted": plan.predictions.replace("predicted ", "") or None,
        "schedule": plan.source.get("schedule"),
        "predictor": plan.source.get("predictor"),
        "kernel": plan.source.get("kernel"),
        "hash": plan.digest,
    }
    for name, value in told.items():
        if value is not None:
            print(f"{name:<11}{value}")

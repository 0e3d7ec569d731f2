"""EigenCache's own plans, as the main job made them."""

import contextlib
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.contestant import Contestant, Study
from eigencache.plan import Plan
from eigencache.runtime import cached


def contestants(study: Study) -> list[Contestant]:
    """Return one contestant for each label that has plans.

    Raises:
        FileNotFoundError: there are no plans.
    """
    plans = study.plans
    labels = sorted({path.parent.name for path in plans.glob("*/*.safetensors")})
    if not labels:
        raise FileNotFoundError(f"{plans}: no plans; run the main job first, or state --plans")
    source = f"eigencache {version('eigencache')}"
    return [
        Contestant(label, source, partial(applied, plans), partial(setting, plans, label))
        for label in labels
    ]


def setting(plans: Path, label: str, budget: int) -> dict | None:
    """Return the plan of a label with so many full steps, if it exists."""
    plan = f"{label}/{budget}.safetensors"
    return {"plan": plan} if (plans / plan).is_file() else None


@contextlib.contextmanager
def applied(plans: Path, pipe, plan: str):
    """Sample by a plan, given by its path within `plans`."""
    with cached(pipe, Plan.load(plans / plan)):
        yield None

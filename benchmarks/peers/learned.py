"""Solvers fitted by `fit.py`, and EigenCache's own plans fitted beside them."""

import contextlib
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.contestant import Contestant, Study
from benchmarks.peers.fitting.budcache import reusing
from benchmarks.peers.fitting.methods import METHODS
from benchmarks.peers.fitting.solver import GridScheduler, LinearScheduler, Solver
from eigencache.plan import Plan
from eigencache.runtime import cached

OURS = f"eigencache {version('eigencache')}"
COSTS = ("prompts", "calls", "backward_calls", "seconds")


def contestants(study: Study) -> list[Contestant]:
    """Return one contestant for each method that has been fitted.

    Raises:
        FileNotFoundError: none has.
    """
    found = [method for method in METHODS if any((study.fits / method).glob("*.json"))]
    if not found:
        raise FileNotFoundError(
            f"{study.fits}: no fits; run python -m benchmarks.peers.fit first, or state --fits"
        )
    return [
        Contestant(
            method, OURS if method.startswith("EigenCache") else "from the paper",
            partial(applied, study.fits), partial(setting, study.fits, method),
            cost=partial(cost, study.fits, method),
        )
        for method in found
    ]  # fmt: skip


def setting(fits: Path, method: str, budget: int) -> dict | None:
    """Return the fit of a budget, if it was made."""
    fit = f"{method}/{budget}.json"
    return {"fit": fit} if (fits / fit).is_file() else None


def cost(fits: Path, method: str, budget: int) -> dict:
    """Return what the fit of a budget took."""
    made = json.loads((fits / method / f"{budget}.json").read_text())
    told = {f"fit_{name}": made[name] for name in COSTS}
    return told | {"fit_ended": made.get("stopped", "")}


@contextlib.contextmanager
def applied(fits: Path, pipe, fit: str):
    """Sample by a fit, given by the path of its file within `fits`."""
    path = fits / fit
    made = json.loads(path.read_text())["fitted"]
    if "plan" in made:
        with cached(pipe, Plan.load(path.with_name(made["plan"]))):
            yield None
        return
    own = pipe.scheduler
    try:
        if "weights" in made:
            pipe.scheduler = LinearScheduler.by(own, Solver.from_dict(made))
            yield None
        else:
            pipe.scheduler = GridScheduler.by(own, made["sigmas"])
            with reusing(pipe, made["full_steps"]):
                yield None
    finally:
        pipe.scheduler = own

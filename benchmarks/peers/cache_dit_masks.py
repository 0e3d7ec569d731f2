"""cache-dit at the full steps of EigenCache's plans, beside its own masks and the plans themselves.

    python -m benchmarks.peers.compare cache_dit_masks --budgets 9 \\
        --out data/benchmarks/cache_dit_masks.csv

in cache-dit's environment. A mask carries a plan's full steps alone: cache-dit's calibrators
forecast the steps between.
"""

from functools import partial
from importlib.metadata import version

import cache_dit

from benchmarks.peers import ours
from benchmarks.peers.cache_dit import BASE, CALIBRATORS, enabled, name
from benchmarks.peers.cache_dit import contestants as peers
from benchmarks.peers.contestant import Contestant, Study
from eigencache.export import computation_mask
from eigencache.plan import Plan

PLANS = ("EigenCache-design", "EigenCache")


def contestants(study: Study) -> list[Contestant]:
    """Return cache-dit at its own intervals, at our full steps, and our plans as they are."""
    source = f"cache-dit {version('cache-dit')}"
    own = [contestant for contestant in peers(study) if contestant.thresholds is None]
    steps = [
        Contestant(
            name(calibrator, f"mask of {label}"), source, partial(masked, calibrator, study.plans),
            partial(ours.setting, study.plans, label),
        )
        for label in PLANS
        for calibrator in CALIBRATORS
    ]  # fmt: skip
    plans = [contestant for contestant in ours.contestants(study) if contestant.method in PLANS]
    return own + steps + plans


def masked(calibrator: str | None, plans, pipe, plan: str):
    """Compute the full steps of a plan, given by its path within `plans`, and no others."""
    config = cache_dit.DBCacheConfig(
        **BASE,
        steps_computation_mask=computation_mask(Plan.load(plans / plan)),
        steps_computation_policy="static",
    )
    return enabled(pipe, calibrator, config)

"""cache-dit, in an environment of its own (`requirements.txt`)."""

import contextlib
import logging
from functools import partial
from importlib.metadata import version

import cache_dit

from benchmarks.peers.contestant import Contestant, Study
from eigencache.schedules import Interval

CALIBRATORS = {
    None: None,
    "TaylorSeer-1": partial(cache_dit.TaylorSeerCalibratorConfig, taylorseer_order=1),
    "TaylorSeer-2": partial(cache_dit.TaylorSeerCalibratorConfig, taylorseer_order=2),
    "FoCa": cache_dit.FoCaCalibratorConfig,
    "DMD": cache_dit.DMDCalibratorConfig,
}
# One block of the stack is computed at every step, which is what the decision is made from. By
# default it is eight, which is all that a small model has, and the first eight steps are full.
BASE = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 3}


def contestants(study: Study) -> list[Contestant]:
    """Return DBCache with its calibrators: by threshold, and at our own interval of steps."""
    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)  # otherwise ten lines each time it is enabled
    source = f"cache-dit {version('cache-dit')}"
    by_threshold = [
        Contestant(
            name(calibrator, "DBCache"), source, partial(dbcache, calibrator), lambda budget: {},
            thresholds=(1e-3, 1.0), alone=True,
        )
        for calibrator in (None, "TaylorSeer-1", "FoCa", "DMD")
    ]  # fmt: skip
    by_interval = [
        Contestant(
            name(calibrator, "interval"), source, partial(masked, calibrator, study.num_steps),
            partial(interval, study.num_steps),
        )
        for calibrator in ("TaylorSeer-1", "TaylorSeer-2", "DMD")
    ]  # fmt: skip
    return by_threshold + by_interval


def name(calibrator: str | None, schedule: str) -> str:
    """Return what a calibrator with a schedule is called."""
    return f"{schedule} + {calibrator}" if calibrator else schedule


def interval(num_steps: int, budget: int) -> dict:
    """Return the interval of our own schedule with so many full steps, after the first three."""
    steps = Interval(full_steps=budget).full(range(num_steps), None).nonzero()[0]
    return {"every": int(steps[-1] - steps[-2])}


def dbcache(calibrator: str | None, pipe, threshold: float):
    """Skip a step if the first block's residual has changed by less than `threshold`."""
    config = cache_dit.DBCacheConfig(**BASE, residual_diff_threshold=threshold)
    return enabled(pipe, calibrator, config)


def masked(calibrator: str | None, num_steps: int, pipe, every: int):
    """Compute the first three steps and then one in every `every`, whatever the image."""
    full = Interval(every=every).full(range(num_steps), None)
    config = cache_dit.DBCacheConfig(
        **BASE,
        steps_computation_mask=full.astype(int).tolist(),
        steps_computation_policy="static",
    )
    return enabled(pipe, calibrator, config)


@contextlib.contextmanager
def enabled(pipe, calibrator: str | None, config):
    """Sample with cache-dit."""
    make = CALIBRATORS[calibrator]
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=make and make())
    try:
        yield None
    finally:
        cache_dit.disable_cache(pipe)

"""cache-dit, in an environment of its own (`requirements.txt`)."""

import contextlib
import logging
from functools import partial
from importlib.metadata import version

import cache_dit
from cache_dit.caching.block_adapters.adapters import dit_adapter
from diffusers import DiTTransformer2DModel

from benchmarks.peers.contestant import Contestant, Study, nearest
from eigencache.schedules import Interval

CALIBRATORS = {
    None: None,
    "TaylorSeer-1": partial(cache_dit.TaylorSeerCalibratorConfig, taylorseer_order=1),
    "TaylorSeer-2": partial(cache_dit.TaylorSeerCalibratorConfig, taylorseer_order=2),
    "FoCa": cache_dit.FoCaCalibratorConfig,
    "DMD": cache_dit.DMDCalibratorConfig,
}
# One block of the stack is computed at every step, which is what the decision is made from. By
# default it is eight, which is most of a small model, and the first eight steps are full.
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
    by_mask = [
        Contestant(
            f"mask {policy} + TaylorSeer-1", source,
            partial(masked, "TaylorSeer-1", study.num_steps),
            partial(own_mask, study.num_steps, policy),
        )
        for policy in ("ultra", "fast")
    ]  # fmt: skip
    return by_threshold + by_interval + by_mask


def name(calibrator: str | None, schedule: str) -> str:
    """Return what a calibrator with a schedule is called."""
    return f"{schedule} + {calibrator}" if calibrator else schedule


def interval(num_steps: int, budget: int, at_least: bool = False) -> dict:
    """Return the interval of our own schedule nearest to a budget, after the first three steps.

    `at_least` rules out those with fewer full steps.
    """
    counts = {
        every: int(Interval(every=every).full(range(num_steps), None).sum())
        for every in range(1, num_steps)
    }
    settings = [
        {"every": every} for every, count in counts.items() if count >= budget or not at_least
    ]
    return nearest(settings, lambda setting: counts[setting["every"]], budget)


def dbcache(calibrator: str | None, pipe, threshold: float):
    """Skip a step if the first block's residual has changed by less than `threshold`."""
    config = cache_dit.DBCacheConfig(**BASE, residual_diff_threshold=threshold)
    return enabled(pipe, calibrator, config)


def own_mask(num_steps: int, policy: str, budget: int) -> dict | None:
    """Return the name of one of cache-dit's own masks if it is within a step of a budget."""
    full_steps = sum(cache_dit.steps_mask(total_steps=num_steps, mask_policy=policy))
    return {"policy": policy} if abs(full_steps - budget) <= 1 else None


def masked(
    calibrator: str | None, num_steps: int, pipe, every: int | None = None, policy: str = ""
):
    """Compute the same steps for every image.

    They are the first three and then one in every `every`, or those of cache-dit's own `policy`.
    """
    if policy:
        mask = cache_dit.steps_mask(total_steps=num_steps, mask_policy=policy)
    else:
        mask = Interval(every=every).full(range(num_steps), None).astype(int).tolist()
    config = cache_dit.DBCacheConfig(
        **BASE, steps_computation_mask=mask, steps_computation_policy="static"
    )
    return enabled(pipe, calibrator, config)


@contextlib.contextmanager
def enabled(pipe, calibrator: str | None, config):
    """Sample with cache-dit."""
    make = CALIBRATORS[calibrator]
    is_dit = isinstance(getattr(pipe, "transformer", None), DiTTransformer2DModel)
    cache_dit.enable_cache(
        dit_adapter(pipe) if is_dit else pipe,  # cache-dit knows pipelines by their names
        cache_config=config, calibrator_config=make and make(),
    )  # fmt: skip
    try:
        yield None
    finally:
        cache_dit.disable_cache(pipe)

"""The caches that diffusers has itself (`transformer.enable_cache`)."""

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from benchmarks.peers.contestant import Contestant, Study, nearest

# Every attention and MLP output, as the TaylorSeer paper has it; by itself diffusers forecasts the
# attention alone. A single-stream block joins both in one projection.
MODULES = {
    "cache_identifiers": [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.proj_out",
    ],
    "skip_predict_identifiers": [r"single_transformer_blocks\.\d+\.(attn|proj_mlp|act_mlp)"],
}
FLOAT32 = {"taylor_factors_dtype": torch.float32}
TAYLORSEER = {
    "TaylorSeer-1 as it comes": {},
    "TaylorSeer-1 modules": FLOAT32 | MODULES,
    "TaylorSeer-2 modules": FLOAT32 | MODULES | {"max_order": 2},
    "TaylorSeer-1 lite": FLOAT32 | {"use_lite_mode": True},
}


def contestants(study: Study) -> list[Contestant]:
    """Return every cache of diffusers that can skip steps of FLUX."""
    source, steps = f"diffusers {version('diffusers')}", study.num_steps
    fixed = [
        Contestant(label, source, partial(taylorseer, options), partial(taylorseer_setting, steps))
        for label, options in TAYLORSEER.items()
    ]
    fixed += [
        Contestant(label, source, apply, partial(skip_range, steps))
        for label, apply in {"PAB": pab, "FasterCache": faster_cache}.items()
    ]
    magcache = MagCache(steps, study.calibrate)
    calibrated = {"fit_prompts": study.prompts, "fit_calls": study.prompts * steps}
    searched = [
        Contestant(
            "MagCache", source, magcache, no_setting, (1e-4, 10.0), cost=lambda budget: calibrated
        ),
        Contestant("FirstBlockCache", source, first_block_cache, no_setting, (1e-3, 1.0), True),
        Contestant("SeaCache", source, sea_cache, no_setting, (1e-3, 10.0), True),
    ]
    return fixed + searched


@contextlib.contextmanager
def enabled(pipe, config):
    """Sample with one of diffusers' caches."""
    pipe.transformer.enable_cache(config)
    try:
        yield None
    finally:
        pipe.transformer.disable_cache()


def taylorseer(options: dict, pipe, **setting):
    """Enable TaylorSeer."""
    return enabled(pipe, TaylorSeerCacheConfig(**options, **setting))


def taylorseer_steps(
    num_steps: int, cache_interval: int, disable_cache_before_step: int
) -> list[int]:
    """Return the steps that diffusers' TaylorSeer computes."""
    first = disable_cache_before_step
    return [s for s in range(num_steps) if s < first or (s - first - 1) % cache_interval == 0]


def taylorseer_setting(num_steps: int, budget: int) -> dict:
    """Return the shortest interval nearest to a budget, after 3 first steps (or 2 or 4) if it can.

    Three is diffusers' default, and does not reach every number of full steps.
    """
    settings = [
        {"cache_interval": interval, "disable_cache_before_step": first}
        for first in (3, 2, 4)
        for interval in range(1, num_steps)
    ]
    return nearest(settings, lambda s: len(taylorseer_steps(num_steps, **s)), budget)


def first_block_cache(pipe, threshold: float):
    """Enable FirstBlockCache."""
    return enabled(pipe, FirstBlockCacheConfig(threshold=threshold))


@contextlib.contextmanager
def sea_cache(pipe, threshold: float):
    """Enable SeaCache, told of what FLUX's pipeline does not tell it.

    It wants latents in their own shape and, of every step, its index and sigma. By default at most
    two steps are skipped together, which allows no fewer than a third of them; here any number.
    """
    config = SeaCacheConfig(
        threshold=threshold, max_consecutive_cached=0, raw_vision_callback=unpacked
    )
    transformer, scheduler = pipe.transformer, pipe.scheduler
    own = transformer.cache_context

    def told(name: str):
        step = scheduler.step_index or 0
        return own(
            name, step_index=step, sigma=scheduler.sigmas[step],
            num_inference_steps=scheduler.num_inference_steps,
        )  # fmt: skip

    with enabled(pipe, config):
        transformer.cache_context = told
        try:
            yield None
        finally:
            del transformer.cache_context


def unpacked(transformer, args, inputs) -> list[torch.Tensor]:
    """Return the latents of each image as SeaCache takes them, `[channels, 1, height, width]`."""
    patches, ids = inputs["hidden_states"], inputs["img_ids"].long()
    height, width = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    squares = patches.unflatten(-1, (-1, 2, 2)).unflatten(1, (height, width))
    return list(squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3).unsqueeze(2))


class MagCache:
    """Enable MagCache, having calibrated it at the first time.

    Its defaults (the first fifth of the steps full, at most three skipped together) allow no fewer
    than 20 full steps of 50. Here the first three steps are full and any number may be skipped.
    """

    def __init__(self, num_steps: int, calibrate: Callable[[object], None]):
        self.num_steps, self.calibrate, self.ratios = num_steps, calibrate, None

    def __call__(self, pipe, threshold: float):
        if self.ratios is None:
            self.ratios = mag_ratios(pipe, self.num_steps, self.calibrate)
        config = MagCacheConfig(
            threshold=threshold,
            max_skip_steps=self.num_steps,
            retention_ratio=3 / self.num_steps,
            num_inference_steps=self.num_steps,
            mag_ratios=self.ratios,
        )
        return enabled(pipe, config)


def mag_ratios(pipe, num_steps: int, calibrate: Callable[[object], None]) -> list[float]:
    """Return MagCache's ratios by its calibration mode, which prints them and keeps nothing."""
    printed = io.StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=num_steps)
    with enabled(pipe, config), contextlib.redirect_stdout(printed):
        calibrate(pipe)
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0,")]
    return json.loads(lists[-1])


def skip_range(num_steps: int, budget: int) -> dict:
    """Return the skip range whose number of computed attentions is nearest to a budget."""
    settings = [{"spatial_attention_block_skip_range": every} for every in range(1, num_steps)]
    return nearest(settings, lambda s: -(-num_steps // next(iter(s.values()))), budget)


def pab(pipe, **setting):
    """Enable PAB at every timestep."""
    config = PyramidAttentionBroadcastConfig(
        **setting,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    return enabled(pipe, config)


def faster_cache(pipe, **setting):
    """Enable FasterCache's forecast of the attention, at every timestep but the first.

    Its other half, to skip every other unconditional pass, has nothing to skip in a model that
    makes one pass a step.
    """
    config = FasterCacheConfig(
        **setting,
        spatial_attention_timestep_skip_range=(-1, 999.9),
        is_guidance_distilled=True,
        attention_weight_callback=lambda module: 0.5,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    return enabled(pipe, config)


def no_setting(budget: int) -> dict:
    """Return no setting: all is in the threshold."""
    return {}

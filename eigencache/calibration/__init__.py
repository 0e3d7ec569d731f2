"""Calibration: from a pipeline and prompts to a plan, in one call."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline

from eigencache.calibration.quality import FEWEST, Judge, cheapest, with_prediction
from eigencache.calibration.recording import Kind, record_kernels
from eigencache.calibration.refinement import Refinement, check_held_out
from eigencache.calibration.sampler import Settings, encode
from eigencache.kernel import Kernel
from eigencache.methods import METHODS, Method
from eigencache.plan import Plan
from eigencache.runtime import transformer_of
from eigencache.schedules import Interval

# What a method that needs no kernel is given, for its timesteps alone.
OUTPUT = Kind("output", "full", "second-moment")
# How many calibration prompts judge plans that are not fitted in closed loop, at most.
JUDGES = 16


def calibrate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    full_steps: int | None = None,
    *,
    psnr: float | None = None,
    method: str = "EigenCache-design",
    tap: str | None = None,
    seed: int = 7,
    num_inference_steps: int = 50,
    height: int | None = None,
    width: int | None = None,
    guidance_scale: float | None = None,
    max_sequence_length: int | None = None,
    **options: object,
) -> Plan:
    """Return a plan for a pipeline, made on calibration prompts. Nothing is trained.

    The default, optimal design in open loop, costs one full run of every prompt. EigenCache's
    closed loop (`method="EigenCache"`) gives better images and costs about ten times as many
    network calls for a plan of 9 full steps of 50. Formulas such as "TaylorSeer" cost one run.

    The plan is for these settings. Sampling at another number of steps is refused, and so is
    another resolution where the scheduler's timesteps depend on it, as FLUX's do.

    Args:
        pipe: a FLUX pipeline of diffusers with its text encoders, or one that is called alike; it
            is on the device and of the dtype that the plan will be used with.
        prompts: what to calibrate on. 8 to 32 suffice; none should be used to judge the result.
        full_steps: how many of the steps are computed in full. State this or `psnr`.
        psnr: a quality in dB; the plan has as few full steps as are predicted to give it. The last
            16 prompts (half of them, if there are fewer than 32) judge. They are kept from the fit
            in closed loop, whose `held_out` says how many.
        method: a name of `eigencache.METHODS`.
        tap: where features are taken, of `eigencache.plan.TAPS`; by default the method's.
        seed: of the calibration's noise; prompt `i` has `sampler.image_seed(seed, i)`.
        num_inference_steps: steps of the sampler, `T`.
        height: of images in pixels; by default the pipeline's.
        width: of images in pixels; by default the pipeline's.
        guidance_scale: of guidance-distilled models; by default the pipeline's.
        max_sequence_length: tokens of the long text encoder; by default the pipeline's.
        options: of the method, such as `order=2`; `METHODS[method].options` names them.

    Returns:
        A plan of `T` steps, for `eigencache.cached`. Its `source` says how it was made and what is
        predicted of it: by design the error of latents, in closed loop or for a `psnr` the PSNR.

    Raises:
        ValueError: there is no such method, an option is unknown or out of range, not just one of
            `full_steps` and `psnr` is stated, the quality or the number of full steps is out of
            reach, there are too few prompts, or the pipeline has no transformer or text encoder.
        PlanError: the closed loop cannot follow the pipeline's sampler.
    """
    chosen = method_of(method)
    check_wish(chosen, full_steps, psnr, tap, num_inference_steps, options)
    prompts = _checked(prompts)
    if chosen.closed_loop:
        check_held_out(chosen.parts(1, **options).closed_loop, len(prompts))
    if psnr is not None and len(prompts) < 2:
        raise ValueError("psnr: prompts to judge by and others are needed; state two at least")
    stated = {
        "height": height, "width": width, "guidance_scale": guidance_scale,
        "max_sequence_length": max_sequence_length,
    }  # fmt: skip
    settings = settings_of(pipe, num_inference_steps, stated)
    _check_encoders(pipe)
    with _quiet(pipe):
        texts = [encode(pipe, prompt, settings) for prompt in prompts]
        kind = kind_of(chosen, tap, options)
        used = texts if chosen.needs_kernel or psnr is not None else texts[:1]
        (kernel,) = record_kernels(pipe, used, settings, seed, [kind])
        return plan_with(
            pipe, texts, settings, seed, chosen, kernel, full_steps=full_steps, psnr=psnr, tap=tap,
            options=options,
        )  # fmt: skip


def plan_with(
    pipe: Any, texts: Sequence[dict], settings: Settings, seed: int, method: Method,
    kernel: Kernel, *, full_steps: int | None, psnr: float | None, tap: str | None,
    options: Mapping[str, Any],
) -> Plan:  # fmt: skip
    """Return the plan of a method from its kernel, with the pipeline at hand.

    Args:
        pipe: to try plans with, in closed loop or for a quality.
        texts: the embeddings of the calibration prompts, from `sampler.encode`.
        settings: how to call the pipeline.
        seed: of the calibration.
        method: of `eigencache.METHODS`.
        kernel: of the kind that it wants.
        full_steps: the budget; None if a quality is asked for.
        psnr: the quality in dB; None if a budget is.
        tap: where features are taken; None where the method does.
        options: of the method.

    Raises:
        ValueError, PlanError: as for `calibrate`.
    """
    if method.closed_loop:
        refinement = Refinement(pipe, texts, settings, seed, method, kernel, options)
        return refinement.plan(_stated(full_steps)) if psnr is None else refinement.cheapest(psnr)

    def open_loop(budget: int) -> Plan:
        return method.plan(budget, kernel.timesteps, kernel, tap=tap, **options)

    if psnr is None:
        return open_loop(_stated(full_steps))
    first = len(texts) - min(JUDGES, len(texts) // 2)
    judge = Judge(pipe, {i: texts[i] for i in range(first, len(texts))}, settings, seed)
    budgets = range(FEWEST, settings.num_steps + 1)
    return cheapest(lambda budget: with_prediction(open_loop(budget), judge), psnr, budgets)


def method_of(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]


def check_wish(
    method: Method, full_steps: int | None, psnr: float | None, tap: str | None, num_steps: int,
    options: Mapping[str, object],
) -> None:  # fmt: skip
    """Raise a ValueError that says what is wrong with what is asked of a method, before any work.

    Args:
        method: of whom.
        full_steps: the budget, or None.
        psnr: the quality in dB, or None.
        tap: where features are to be taken, or None.
        num_steps: of the sampler.
        options: of the method.
    """
    if (full_steps is None) == (psnr is None):
        raise ValueError("state either full_steps, a number of steps, or psnr, a quality in dB")
    if full_steps is not None and not 1 <= full_steps <= num_steps:
        raise ValueError(f"full_steps must lie between 1 and the {num_steps} steps: {full_steps}")
    if psnr is not None and not (math.isfinite(psnr) and psnr > 0):
        raise ValueError(f"psnr must be a finite number of dB above 0, got {psnr}")
    if psnr is not None and method.schedule is Interval:
        raise ValueError(
            "psnr: an interval does not give every number of full steps; state full_steps, or "
            "choose a method that has no interval, such as EigenCache-design"
        )
    if method.closed_loop and tap not in (None, method.tap):
        raise ValueError(f"tap: the closed loop is for {method.tap!r}, not for {tap!r}")
    method.parts(full_steps or FEWEST, **options)


def kind_of(method: Method, tap: str | None, options: Mapping[str, object]) -> Kind:
    """Return the kind of kernel that a method wants with these options."""
    use = method.parts(1, **options).use
    if use is None:
        return OUTPUT
    return Kind(tap or method.tap, use.features, use.normalisation, use.runs)


def settings_of(pipe: Any, num_steps: int, stated: Mapping[str, float | None]) -> Settings:
    """Return how a pipeline will be called: as stated, or as it is called by default.

    Args:
        pipe: a FLUX pipeline of diffusers, or one that is called alike.
        num_steps: of the sampler.
        stated: `height`, `width`, `guidance_scale`, `max_sequence_length`; None asks for the
            pipeline's own.

    Raises:
        ValueError: the pipeline has no transformer, or is called in another way.
    """
    transformer = transformer_of(pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    needed = {"prompt_embeds", "pooled_prompt_embeds", "generator", *stated}
    if needed - parameters.keys():
        raise ValueError(
            f"{type(pipe).__name__} has no arguments {sorted(needed - parameters.keys())}: "
            "calibration is for pipelines that are called as diffusers' FluxPipeline is"
        )
    own = {name: parameters[name].default for name in ("guidance_scale", "max_sequence_length")}
    own["height"] = own["width"] = pipe.default_sample_size * pipe.vae_scale_factor
    found: dict[str, Any] = {
        name: own[name] if value is None else value for name, value in stated.items()
    }
    dtype = str(transformer.dtype).removeprefix("torch.")
    return Settings(num_steps=num_steps, dtype=dtype, **found)


def _stated(full_steps: int | None) -> int:
    if full_steps is None:
        raise ValueError("state full_steps, or a quality")
    return full_steps


def _checked(prompts: Sequence[str]) -> list[str]:
    """Return prompts as a list, or raise a ValueError if they are no texts or none."""
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of texts, got a single text")
    prompts = list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompts[{i}] must be a text that is not empty, got {prompt!r}")
    if not prompts:
        raise ValueError("there are no prompts to calibrate on")
    return prompts


def _check_encoders(pipe: Any) -> None:
    missing = [
        name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is None
    ]
    if missing:
        raise ValueError(f"the pipeline has no {' and no '.join(missing)} to encode prompts with")


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Turn off the progress bar that the pipeline shows for every image, inside a `with` block."""
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)

"""Full runs for the closed loop, on a tiny random FLUX pipeline: its latents, and its network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
)
from helpers import tiny_flux, tiny_pipeline

from eigencache.calibration.full_runs import full_runs
from eigencache.calibration.sampler import Settings, call, image_seed
from eigencache.closed_loop import fixed, follow, updates_of
from eigencache.design import step_sizes
from eigencache.methods import make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Newton
from eigencache.runtime import cached
from eigencache.schedules import Steps

STEPS, SEED = 6, 7
SETTINGS = Settings(num_steps=STEPS, height=16, width=16, max_sequence_length=3, dtype="float32")
PROMPTS = ["a cat", "a dog", "a house", "a tree", "a boat"]


@pytest.fixture(scope="module")
def pipe():
    """A FLUX pipeline with random weights and no text encoders."""
    return tiny_pipeline()


def with_parts(pipe, **parts):
    other = FluxPipeline(**{**pipe.components, **parts})
    other.set_progress_bar_config(disable=True)
    return other


def text_of(prompt):
    draw = torch.Generator().manual_seed(len(prompt))
    return {
        "prompt_embeds": torch.randn(1, 3, 12, generator=draw),
        "pooled_prompt_embeds": torch.randn(1, 10, generator=draw),
    }


TEXTS = [text_of(prompt) for prompt in PROMPTS]
NEGATIVE = {f"negative_{name}": tensor for name, tensor in text_of("").items()}


def runs_of(pipe, indices=range(5), batch=2):
    return full_runs(pipe, TEXTS, SETTINGS, SEED, indices, batch)


def sampled(pipe, index, every_step=None, **arguments):
    """Return the final latents of one image from the pipeline alone, float32."""
    with torch.no_grad():
        return pipe(
            **text_of(PROMPTS[index]), num_inference_steps=STEPS, height=16, width=16,
            guidance_scale=3.5, generator=torch.Generator().manual_seed(image_seed(SEED, index)),
            output_type="latent", callback_on_step_end=every_step, **arguments,
        ).images  # fmt: skip


def test_latents_are_those_of_the_pipeline(pipe):
    runs = runs_of(pipe, range(5), batch=1)
    assert runs.latents.shape[:2] == (STEPS + 1, 5)
    assert runs.latents.dtype == np.float64
    for index in range(5):
        seen = []

        def keep(pipe, step, timestep, tensors, seen=seen):
            seen.append(tensors["latents"])
            return {}

        final = sampled(pipe, index, keep)
        assert np.array_equal(runs.latents[-1, index], final[0].double().numpy())
        for step in range(STEPS):
            assert np.array_equal(runs.latents[step + 1, index], seen[step][0].double().numpy())


def test_the_noise_is_that_of_the_calibration(pipe):
    runs = runs_of(pipe, [3, 1], batch=2)
    for place, index in enumerate([3, 1]):
        draw = torch.Generator().manual_seed(image_seed(SEED, index))
        noise = torch.randn(1, 4, 8, 8, generator=draw)  # before 2 x 2 patches become tokens
        assert np.sort(runs.latents[0, place].ravel()) == pytest.approx(
            np.sort(noise.double().numpy().ravel()), rel=1e-7
        )


def test_timesteps_are_the_samplers(pipe):
    runs = runs_of(pipe, [0], batch=1)
    sampled(pipe, 0)
    assert np.array_equal(runs.timesteps, pipe.scheduler.timesteps.double().numpy())
    assert len(runs) == STEPS


def test_every_step_is_eulers(pipe):
    runs = runs_of(pipe)
    sizes = step_sizes(runs.timesteps)
    for step in range(STEPS):
        moved = runs.latents[step] + sizes[step] * runs.velocity(runs.latents[step], step)
        assert np.allclose(moved, runs.latents[step + 1], rtol=1e-4, atol=1e-5)


def test_the_network_is_asked_where_the_latents_are(pipe):
    """Following the network with every step full leads to the full runs; elsewhere it differs."""
    runs = runs_of(pipe)
    final = follow(runs, range(STEPS), None)[-1].latents
    assert np.allclose(final, runs.latents[-1], rtol=1e-4, atol=1e-5)
    there = runs.velocity(runs.latents[2], 2)
    assert not np.allclose(runs.velocity(runs.latents[2] + 0.5, 2), there, atol=1e-3)
    assert not np.allclose(runs.velocity(runs.latents[2], 3), there, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_batches_change_nothing_but_rounding(pipe, batch):
    """An image's noise and text are its own: neither depends on who shares its batch."""
    whole, split = runs_of(pipe, batch=5), runs_of(pipe, batch=batch)
    assert np.array_equal(whole.latents[0], split.latents[0])
    assert np.allclose(whole.latents, split.latents, rtol=1e-4, atol=1e-5)
    at = whole.latents[3] + 0.1
    assert np.allclose(whole.velocity(at, 3), split.velocity(at, 3), rtol=1e-4, atol=1e-5)


def test_images_are_in_the_order_of_their_indices(pipe):
    whole, picked = runs_of(pipe, range(5)), runs_of(pipe, [4, 0, 2])
    assert np.allclose(picked.latents, whole.latents[:, [4, 0, 2]], rtol=1e-4, atol=1e-5)


def test_following_a_plan_is_what_the_cached_pipeline_does(pipe):
    """With the runtime's cache on, the pipeline ends where `follow` says that it will."""
    runs = runs_of(pipe)
    plan = make_plan(Steps([0, 1, 3]), Newton(1), runs.timesteps)
    sizes, weights = step_sizes(runs.timesteps), plan.weights
    updates = {1: sizes[2] * weights[2, [0, 1]], 2: sizes[4:] @ weights[4:][:, [0, 1, 3]]}
    expected = follow(runs, (0, 1, 3), lambda k, _: updates[k])[-1].latents
    with cached(pipe.transformer, plan) as counts:
        finals = [sampled(pipe, index)[0].double().numpy() for index in range(5)]
    assert (counts.full, counts.skipped) == (15, 15)
    assert np.allclose(finals, expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(finals, runs.latents[-1], atol=1e-2)


def test_no_hook_is_left_on_the_network(pipe):
    runs_of(pipe, [0], batch=1)
    assert not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchLCMScheduler(),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ],
    ids=["LCM", "stochastic", "inverted", "UniPC"],
)
def test_another_sampler_is_refused(pipe, scheduler):
    with pytest.raises(PlanError, match=r"no Euler step of flow matching.*FlowMatchEuler"):
        runs_of(with_parts(pipe, scheduler=scheduler))
    assert not pipe.transformer._forward_pre_hooks


def guided(scale):
    return replace(SETTINGS, true_cfg_scale=scale)


def guided_runs(pipe, scale, indices=range(3)):
    texts = [text | NEGATIVE for text in TEXTS]
    return full_runs(pipe, texts, guided(scale), SEED, indices, 2)


def test_guidance_is_followed_through_both_passes(pipe):
    """The pipeline's own latents, and a plan's as the cached pipeline samples it."""
    runs = guided_runs(pipe, 3.0)

    def pipelines(index):
        return sampled(pipe, index, true_cfg_scale=3.0, **NEGATIVE)[0].double().numpy()

    assert runs.latents.shape[0] == STEPS + 1
    finals = np.stack([pipelines(index) for index in range(3)])
    assert np.allclose(runs.latents[-1], finals, rtol=1e-4, atol=1e-5)
    assert np.allclose(follow(runs, range(STEPS), None)[-1].latents, finals, rtol=1e-4, atol=1e-4)
    assert not np.allclose(guided_runs(pipe, 2.0).latents[-1], finals, atol=1e-2)
    plan = make_plan(Steps([0, 1, 3]), Newton(1), runs.timesteps)
    expected = follow(runs, (0, 1, 3), fixed(updates_of(plan)))[-1].latents
    with cached(pipe.transformer, plan) as counts:
        cached_finals = np.stack([pipelines(index) for index in range(3)])
    assert (counts.full, counts.skipped) == (18, 18)
    assert np.allclose(cached_finals, expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(cached_finals, finals, atol=1e-2)


def test_another_combination_of_the_passes_is_refused(pipe, monkeypatch):
    """What the network is followed by must be what the sampler steps by."""

    def other_scale(pipe, text, settings, seeds, **options):
        return call(pipe, text, replace(settings, true_cfg_scale=5.0), seeds, **options)

    monkeypatch.setattr("eigencache.calibration.full_runs.call", other_scale)
    with pytest.raises(PlanError, match="no Euler step"):
        guided_runs(pipe, 1.5)


@pytest.mark.parametrize(("asked", "called", "times"), [(1.0, 2.0, 12), (2.0, 1.0, 6)])
def test_another_number_of_calls_is_refused(pipe, monkeypatch, asked, called, times):
    def other_scale(pipe, text, settings, seeds, **options):
        return call(pipe, text, replace(settings, true_cfg_scale=called), seeds, **options)

    monkeypatch.setattr("eigencache.calibration.full_runs.call", other_scale)
    with pytest.raises(PlanError, match=f"called its network {times} times in 6 steps"):
        guided_runs(pipe, asked)
    assert not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize("steps", [STEPS, 50])  # of many small steps rounding takes a large part
def test_a_model_in_half_precision_passes(pipe, steps):
    settings = replace(SETTINGS, num_steps=steps)
    single = full_runs(pipe, TEXTS, settings, SEED, [0, 1], 2)
    texts = [{name: tensor.bfloat16() for name, tensor in text.items()} for text in TEXTS]
    half = with_parts(pipe, transformer=tiny_flux().bfloat16())
    runs = full_runs(half, texts, replace(settings, dtype="bfloat16"), SEED, [0, 1], 2)
    assert runs.rounding == torch.finfo(torch.bfloat16).eps
    velocity = runs.velocity(runs.latents[1], 1)
    assert runs.latents.dtype == velocity.dtype == np.float64
    assert np.allclose(velocity, single.velocity(runs.latents[1], 1), atol=0.05)

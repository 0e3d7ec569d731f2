"""Built-in plans on a trained model: nearer to its full run than fewer steps; and probed ones."""

import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline, StableDiffusionXLPipeline
from fields import field_pipeline
from helpers import ROOT
from pipelines.stand_ins import save

import eigencache
from eigencache import built_in
from eigencache.calibration import Calibration
from eigencache.calibration.probe import IMAGES, METHOD, SEED
from eigencache.calibration.quality import Judge
from eigencache.calibration.sampler import image_seed, load_pipeline
from eigencache.kernel import OUTPUT
from eigencache.methods import METHODS
from eigencache.metrics._psnr import psnr
from eigencache.metrics.images import pixels
from eigencache.plan import PlanError, PlanWarning

PROMPTS = ["a red apple on a blue background", "a panda and a red apple on a pink background"]
SIZE = {"height": 128, "width": 128, "max_sequence_length": 24}


@pytest.fixture(scope="module")
def trained():
    pipe = FluxPipeline.from_pretrained(ROOT / "data/emoji-flux", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe, steps, guidance):
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    made = pipe(
        PROMPTS, num_inference_steps=steps, generator=noise, guidance_scale=guidance, **SIZE
    )
    return [pixels(image) for image in made.images]


def decibels(made, full):
    return sum(psnr(one, other) for one, other in zip(made, full, strict=True)) / len(full)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "steps", "full_steps", "above"),
    [(1.0, 50, 7, 1), (1.0, 28, 9, 3), (3.0, 50, 9, 1), (5.0, 50, 9, 0)],
)
def test_it_beats_fewer_steps_without_the_models_own_kernel(
    trained, monkeypatch, guidance, steps, full_steps, above
):
    others = tuple(s for s in built_in.sources() if s.model != "emoji-flux")
    monkeypatch.setattr(built_in, "sources", lambda: others)
    full = images(trained, steps, guidance)
    fewer = decibels(images(trained, full_steps, guidance), full)
    with eigencache.cached(trained, full_steps=full_steps) as stats:
        cached = decibels(images(trained, steps, guidance), full)
    assert (stats.full, stats.skipped) == (full_steps, steps - full_steps)
    assert cached > fewer + above


# ---- Guidance


@pytest.mark.parametrize(("scale", "nearest"), [(1.0, 1), (3.5, 3), (7.0, 5)])
def test_a_plan_is_of_sources_at_the_guidance_of_the_call(pipe, scale, nearest):
    with eigencache.cached(pipe, full_steps=4) as stats:
        latents(pipe, guidance_scale=scale)
        assert stats.plan.source["built in"] == f"flow at guidance {nearest}"
        assert f"for flow at guidance {nearest}" in str(stats)
        other = stats.plan
        latents(pipe, guidance_scale=2.0)  # anew for an image with other guidance
        assert stats.plan.source["built in"] == "flow at guidance 2"
        latents(pipe, guidance_scale=scale)
        assert stats.plan.digest == other.digest


# ---- A quality

TINY = {"height": 16, "width": 16, "max_sequence_length": 24}
CALL = {"prompt": PROMPTS[0], "num_inference_steps": 12, **TINY}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return load_pipeline(tiny_model, "float32")


def latents(pipe, *args, **changes):
    arguments = {"num_inference_steps": 12, **TINY, "output_type": "latent"} | changes
    return pipe(*args or (PROMPTS[0],), **arguments).images


def seeded(number):
    return torch.Generator().manual_seed(number)


def test_a_probe_finds_the_fewest_steps_that_give_a_quality(pipe, caplog):
    with eigencache.cached(pipe, psnr=48) as stats:
        first = latents(pipe, generator=seeded(1))
        plan = stats.plan
        assert stats.full == plan.full.sum() and stats.full + stats.skipped == 12
        assert stats.predicted_psnr >= 48
        latents(pipe, generator=seeded(2))
        assert stats.full == 2 * plan.full.sum()
    assert [r.name for r in caplog.records].count("eigencache") == 1  # for one probe
    # What was predicted is what each of two images has by plans of the other's kernel.
    calibration = Calibration(pipe, [CALL] * IMAGES, {}, SEED)
    judges = [Judge(pipe, [CALL], [image_seed(SEED, i)]) for i in range(IMAGES)]
    kernels = [calibration.simulator([i], 1).kernel() for i in range(IMAGES)]

    def predicted(full_steps):
        plans = [METHODS[METHOD].plan(full_steps, k.timesteps, k) for k in kernels]
        return (judges[0].psnr(plans[1]) + judges[1].psnr(plans[0])) / 2

    count = int(plan.full.sum())
    assert predicted(count) == pytest.approx(stats.predicted_psnr)
    assert all(predicted(less) < 48 for less in range(2, count))
    # The plan itself is of both.
    both = calibration.kernel(OUTPUT)
    assert METHODS[METHOD].plan(count, both.timesteps, both).full_steps == plan.full_steps
    with eigencache.cached(pipe, plan):
        assert torch.equal(latents(pipe, generator=seeded(1)), first)


def test_a_probe_leaves_no_trace(pipe):
    """Not on the noise that the caller draws from torch itself, nor on callbacks of the call."""
    called = []

    def ended(pipe, step, timestep, kept):
        called.append(step)
        return kept

    images, plan = [], None
    for wish in ({"psnr": 20}, {}):
        torch.manual_seed(3)
        with eigencache.cached(pipe, plan, **wish) as stats:
            images.append(latents(pipe, callback_on_step_end=ended))
        assert stats.full == 2
        plan = stats.plan
    assert torch.equal(*images)
    assert called == 2 * [*range(12)]


def test_a_quality_out_of_reach_is_told_by_the_first_call_and_probed_again(pipe):
    kind = type(pipe)
    with eigencache.cached(pipe, psnr=99) as stats:
        for _ in range(2):
            with pytest.raises(ValueError, match="psnr: 99 dB is out of reach: 3 full steps"):
                latents(pipe, num_inference_steps=4)
        with pytest.raises(TypeError, match="promtp"):
            pipe(promtp="a fox")
        assert stats.full == 0
    assert type(pipe) is kind
    latents(pipe, num_inference_steps=2)


def test_a_quality_holds_for_what_was_probed(pipe):
    guided = {"negative_prompt": "", "true_cfg_scale": 2.0}
    with eigencache.cached(pipe, psnr=20) as stats:
        latents(pipe, guidance_scale=1.0)
        with pytest.warns(PlanWarning, match="made at guidance_scale 1, called with 2"):
            latents(pipe, guidance_scale=2.0)
        with pytest.warns(PlanWarning, match="This image has other timesteps, 14"):
            latents(pipe, num_inference_steps=14, **guided)
        assert stats.plan.full.sum() == 2 and torch.tensor(stats.predicted_psnr).isnan()


def test_a_probe_serves_networks_that_no_built_in_plan_is_for(tmp_path):
    save("SDXL", tmp_path / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "sdxl", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    small = {"height": 16, "width": 16, "num_inference_steps": 8, "output_type": "latent"}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(PlanError, match=r"no built-in plan.*fewer than two.*'sample'"):
        eigencache.enable_cache(pipe, full_steps=4)
    with eigencache.cached(pipe, psnr=10) as stats:
        pipe("a fox", **small)
    assert stats.plan.method == METHOD and stats.full + stats.skipped == 8


def test_noise_that_the_call_asks_for_at_every_step_is_refused(tmp_path):
    save("SDXL", tmp_path / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "sdxl", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    small = {"height": 16, "width": 16, "num_inference_steps": 8, "output_type": "latent"}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with eigencache.cached(pipe, full_steps=4) as stats:
        with pytest.raises(PlanError, match="no built-in plan for DDIMScheduler: with eta above 0"):
            pipe("a fox", eta=1.0, **small)
        pipe("a fox", eta=0.0, **small)
    assert stats.full == 4


def test_a_cache_that_waits_for_a_call_can_be_taken_off(pipe):
    kind = type(pipe)
    for _ in range(2):
        eigencache.enable_cache(pipe, psnr=30)
        with pytest.raises(ValueError, match="already enabled"):
            eigencache.enable_cache(pipe, psnr=30)
        eigencache.disable_cache(pipe)
        assert type(pipe) is kind


def test_a_loop_by_hand_cannot_be_probed():
    pipe = field_pipeline()
    x = torch.ones(1, len(pipe.transformer.still))
    with eigencache.cached(pipe, psnr=30):
        scheduler = pipe.scheduler
        scheduler.set_timesteps(4)
        output = pipe.transformer(x, scheduler.timesteps[0], x)
        with pytest.raises(PlanError, match="state full_steps"):
            scheduler.step(output, scheduler.timesteps[0], x)

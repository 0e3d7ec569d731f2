"""The benchmark of plans that are carried over (`benchmarks/carry_over.py`), on a tiny FLUX."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

from benchmarks import carry_over
from benchmarks.carry_over import (
    CLOSED,
    OPEN,
    Setting,
    calibration_of,
    images,
    pipeline,
    settings_of,
)
from eigencache.calibration.recording import timesteps_of as steps_of
from eigencache.calibration.sampler import image_seed
from eigencache.kernel import OUTPUT
from eigencache.methods import make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Newton
from eigencache.runtime import cached
from eigencache.schedules import Steps

pytestmark = pytest.mark.slow

STEPS = 8
ARGUMENTS = {"num_inference_steps": STEPS, "height": 16, "width": 16}
BASE = Setting("base", ["a", "b"], {3: "c", 5: "d", 8: "e"}, ARGUMENTS)
GUIDED = replace(BASE, name="guided", arguments={**ARGUMENTS, "true_cfg_scale": 3.0})
LARGER = replace(BASE, name="larger", arguments={**ARGUMENTS, "height": 32, "width": 32})
SHIFTED = replace(BASE, name="shifted", scheduler=carry_over.LARGE)


def call_of(prompt):
    """Return made-up text embeddings, each prompt its own, and those of no words for guidance."""
    call = {}
    for sign, words in {"": prompt, "negative_": ""}.items():
        draw = torch.Generator().manual_seed(zlib.crc32(words.encode()))
        call[f"{sign}prompt_embeds"] = torch.randn(1, 3, 12, generator=draw)
        call[f"{sign}pooled_prompt_embeds"] = torch.randn(1, 10, generator=draw)
    return call


@pytest.fixture(scope="module")
def tiny():
    return tiny_pipeline()


@pytest.fixture(autouse=True)
def model(tiny, monkeypatch):
    monkeypatch.setattr(carry_over, "loaded", lambda model: tiny)
    monkeypatch.setattr(carry_over, "call_of", call_of)


def sampled(pipe, setting) -> np.ndarray:
    """Return final latents `[N, tokens, channels]` of the evaluation prompts."""
    made = images(pipe, setting, setting.evaluation, 1, output="latent")
    return torch.stack(list(made)).double().numpy()


def timesteps_of(setting) -> np.ndarray:
    return steps_of(pipeline("", setting), {**setting.arguments, **call_of("a")})


def plan_of(setting, full=(0, 1, 2, 5)):
    return make_plan(Steps(list(full)), Newton(1), timesteps_of(setting))


def error(a, b) -> float:
    return np.abs(a - b).max() / np.abs(b).max()


def test_settings_differ_from_the_first_in_one_respect():
    calibration = ["ham and a cat", "a cat", "a dog", "a dog and pie"]
    evaluation = ["a fox", "rice and tea", "an owl", "ice and a cow", "a cow", "tea and ham"]
    base, *others = settings_of(calibration, evaluation, {"height": 64, "width": 64}, 2)
    assert base.evaluation == {0: "a fox", 2: "an owl"}
    assert base.calibration == ["a cat", "a dog"] * (carry_over.RUNS // 2)
    names = ("calibration", "evaluation", "arguments", "scheduler")
    changed = {s.name: [n for n in names if getattr(s, n) != getattr(base, n)] for s in others}
    assert changed == {
        "two things": ["calibration", "evaluation"],
        "24 px": ["arguments"],
        "48 px": ["arguments"],
        "96 px": ["arguments"],
        "timesteps of 1024 px": ["scheduler"],
        "guidance 2.0": ["arguments"],
        "guidance 5.0": ["arguments"],
    }
    assert others[-1].arguments == {**base.arguments, "guidance_scale": 5.0}
    assert others[0].evaluation == {1: "rice and tea", 3: "ice and a cow"}
    assert others[0].calibration[:3] == ["ham and a cat", "a dog and pie", "ham and a cat"]


def test_too_few_prompts_are_refused():
    evaluation = ["a fox", "tea and a cup", "b", "c"]
    with pytest.raises(ValueError, match="3 evaluation prompts of 'two things', there are 1"):
        settings_of(["ham and a pie", "a cat"], evaluation, ARGUMENTS, 3)


def test_an_image_is_of_its_prompt_and_its_seed_and_not_of_its_batch(monkeypatch):
    pipe = pipeline("", GUIDED)
    together = sampled(pipe, GUIDED)
    monkeypatch.setattr(carry_over, "BATCH", 2)
    assert error(sampled(pipe, GUIDED), together) < 1e-5
    alone = pipe(
        **call_of("e"), height=16, width=16, num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(image_seed(1, 8)), output_type="latent",
        true_cfg_scale=3.0,
    ).images[0]  # fmt: skip
    assert error(together[2], alone.numpy()) < 1e-5


@pytest.mark.parametrize("setting", [BASE, GUIDED], ids=lambda s: s.name)
def test_a_plan_of_every_step_full_changes_nothing(setting):
    pipe = pipeline("", setting)
    uncached = sampled(pipe, setting)
    with cached(pipe, plan_of(setting, range(STEPS))) as stats:
        np.testing.assert_array_equal(sampled(pipe, setting), uncached)
    assert (stats.full, stats.skipped) == (STEPS, 0)


def test_a_plan_forecasts_what_both_passes_are_guided_to():
    pipe, plan = pipeline("", GUIDED), plan_of(BASE)
    with cached(pipe, plan) as stats:
        really = sampled(pipe, GUIDED)
    assert (stats.full, stats.skipped) == (4, STEPS - 4)
    step, velocities = pipe.scheduler.step, []

    def forecast(velocity, *args, **kwargs):
        row = plan.weights[len(velocities)]
        if row.any():
            velocity = sum(float(w) * v for w, v in zip(row, velocities, strict=False))
        velocities.append(velocity)
        return step(velocity, *args, **kwargs)

    uncached = sampled(pipe, GUIDED)
    pipe.scheduler.step = forecast
    expected = sampled(pipe, GUIDED)
    assert error(really, expected) < 1e-5 < error(really, uncached)


@pytest.mark.parametrize("setting", [BASE, GUIDED], ids=lambda s: s.name)
def test_the_kernel_is_of_what_the_scheduler_is_given(setting):
    pipe = pipeline("", setting)
    kernel = calibration_of(pipe, replace(setting, calibration=["a"])).kernel(OUTPUT)
    step, velocities = pipe.scheduler.step, []

    def keep(velocity, *args, **kwargs):
        velocities.append(velocity.flatten())
        return step(velocity, *args, **kwargs)

    pipe.scheduler.step = keep
    images(pipe, setting, {0: "a"}, carry_over.CALIBRATION_SEED, output="latent")
    features = torch.stack(velocities).double().numpy()
    np.testing.assert_allclose(kernel.matrix(), features @ features.T / features.shape[1], 1e-5)
    np.testing.assert_array_equal(kernel.timesteps, timesteps_of(setting))
    assert calibration_of(pipe, setting).kernel(OUTPUT).runs == 2


@pytest.mark.parametrize("setting", [LARGER, SHIFTED], ids=lambda s: s.name)
def test_a_plan_is_refused_at_other_timesteps_unless_it_is_retimed(setting):
    pipe, plan = pipeline("", setting), plan_of(BASE)
    with cached(pipe, plan), pytest.raises(PlanError, match="resolution"):
        sampled(pipe, setting)
    with cached(pipe, plan.retimed(timesteps_of(setting))) as stats:
        sampled(pipe, setting)
    assert (stats.full, stats.skipped) == (4, STEPS - 4)
    # Each setting has a scheduler of its own.
    np.testing.assert_array_equal(timesteps_of(BASE), plan.timesteps)


def test_the_table(monkeypatch):
    monkeypatch.setattr(carry_over, "RUNS", 3)
    monkeypatch.setattr(carry_over, "LOOP", {**carry_over.LOOP, "held_out": 1, "sweeps": 0})
    settings = [replace(s, calibration=["a", "b", "f"]) for s in (BASE, LARGER, GUIDED)]
    with ThreadPoolExecutor(1) as pool:
        table = carry_over.carry_over("", settings, [3, 5], pool)
    rows = {tuple(row) for row in table[["method", "made_for", "used_on"]].to_numpy()}
    assert len(table) == 2 * len(rows) and rows == {
        (OPEN, "base", "larger"), (OPEN, "larger", "base"),
        (CLOSED, "base", "larger"), (CLOSED, "larger", "base"),
        (OPEN, "base", "guided"), (OPEN, "guided", "base"),
        (CLOSED, "base", "guided"), (CLOSED, "guided", "base"),
    }  # fmt: skip
    assert (table.full_steps == table.budget).all() and (table.prompts == 3).all()
    own = table[table.used_on == "base"].groupby(["method", "budget"]).psnr_own
    assert (own.nunique() == 1).all()  # whatever was carried over, it is compared with the same
    assert np.isfinite(table[["psnr", "psnr_own", "psnr_fewer_steps"]]).all(axis=None)

"""Sampling a whole pipeline: what an image depends on, and what it does not."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eigencache.calibration import Calibration
from eigencache.calibration._calls import called
from eigencache.calibration.recording import outline, recording
from eigencache.calibration.sampler import frames_of, image_seed, load_pipeline, sample
from eigencache.commands.prompts import read_calls
from eigencache.kernel import Kind
from eigencache.methods import METHODS
from eigencache.plan import PlanError
from reproduction.prompts import shard_indices
from reproduction.stages.sample import Run, sample_run, sample_shard

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_inference_steps": 8, "height": 16, "width": 16, "max_sequence_length": 24}
CALLS = read_calls(ROOT / "data/prompts/emoji-evaluation.txt", 4)
FULL = Run("full", "full")


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return load_pipeline(tiny_model, "float32")


def call_of(index):
    return {**ARGUMENTS, **CALLS[index]}


def sampled_shard(pipe, shard, runs, *rest, **options):
    return list(sample_shard(pipe, CALLS, shard, runs, ARGUMENTS, *rest, **options))


def calibration_of(pipe, **changed):
    calls = read_calls(ROOT / "data/prompts/emoji-calibration.txt", 3)
    return Calibration(pipe, calls, {**ARGUMENTS, **changed}, 7)


@pytest.fixture(scope="module")
def kernels(pipe):
    kinds = map(Kind.of, ["output.full.second-moment", "modules.token-mean.cosine"])
    return calibration_of(pipe).kernels(list(kinds))


@pytest.fixture(scope="module")
def runs(kernels):
    output, modules = kernels
    ours = METHODS["EigenCache-design"].plan(4, output.timesteps, output)
    theirs = METHODS["EigenCache-published"].plan(4, modules.timesteps, modules)
    fewer = Run("fewer", "fewer", changed={"num_inference_steps": 4})
    return [FULL, fewer, Run("ours", "design", ours), Run("theirs", "published", theirs)]


def hashes(records):
    return {(record["run"], record["prompt_index"]): record["sha256"] for record in records}


@pytest.mark.slow
def test_images_do_not_depend_on_shards_or_order(pipe, runs, tmp_path):
    def sampled(*shards):
        parts = [
            sampled_shard(pipe, shard, runs, 5, tmp_path / str(i), timed=0)
            for i, shard in enumerate(shards)
        ]
        return hashes(record for part in parts for record in part)

    together = sampled(range(4))
    assert len(set(together.values())) == len(runs) * 4
    assert sampled(*(shard_indices(4, i, 3) for i in range(3))) == together
    assert sampled(range(3, -1, -1)) == together


def test_records_state_what_was_done(pipe, runs, tmp_path):
    records = sampled_shard(pipe, range(2), runs, 5, tmp_path, timed=1)
    by_run = {record["run"]: record for record in records if record["prompt_index"] == 0}
    assert [by_run[name]["full_steps"] for name in ("full", "fewer", "ours", "theirs")] == [
        8,
        4,
        4,
        4,
    ]
    assert [by_run[name]["method"] for name in ("full", "ours")] == ["full", "design"]
    assert by_run["fewer"]["num_steps"] == 4
    # Where the full run is sampled anyway, it is what the others are timed against.
    assert by_run.pop("full")["reference_seconds"] is None
    full = next(r["seconds"] for r in records if r["run"] == "full")
    assert all(record["reference_seconds"] == full for record in by_run.values())
    assert all(r["reference_seconds"] is None for r in records if r["prompt_index"] == 1)
    assert all(Path(record["image"]).read_bytes()[:4] == b"\x89PNG" for record in records)
    (alone, _) = sampled_shard(pipe, range(2), runs[2:3], 5, tmp_path, timed=1)
    assert alone["reference_seconds"] > 0 and alone["sha256"] == by_run["ours"]["sha256"]


def test_seed_and_prompt_both_matter(pipe):
    images = [
        sample_run(pipe, call_of(prompt), image_seed(5, index), FULL).frames[0].tobytes()
        for prompt in (0, 1)
        for index in (0, 1)
    ]
    assert len(set(images)) == 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_frames_are_rgb_whatever_a_pipeline_made(mode):
    """A palette's numbers are no levels."""
    picture = Image.new("RGB", (2, 2), (200, 30, 60)).convert(mode)
    (frame,) = frames_of(SimpleNamespace(images=[picture]))
    assert frame.mode == "RGB"
    assert frame.tobytes() == picture.convert("RGB").tobytes()


def test_every_step_full_is_bit_identical_to_no_cache(pipe, kernels):
    plain = sample(pipe, call_of(0), 1).frames[0].tobytes()
    for tap in ("output", "modules"):
        plan = METHODS["FORA"].plan(8, kernels[0].timesteps, tap=tap)
        assert plan.full.all()
        made = sample_run(pipe, call_of(0), 1, Run("x", "x", plan))
        assert made.full_steps == 8 and made.frames[0].tobytes() == plain


def test_plan_for_other_steps_is_refused_and_leaves_no_cache(pipe, runs):
    plain = sample(pipe, call_of(0), 1).frames[0].tobytes()
    with pytest.raises(PlanError, match=r"made for 8 steps, the sampler takes 12"):
        sample_run(pipe, call_of(0), 1, Run("x", "x", runs[2].plan, {"num_inference_steps": 12}))
    assert sample(pipe, call_of(0), 1).frames[0].tobytes() == plain


def test_kernel_is_that_of_the_recorded_features(pipe, kernels):
    grams = []
    for index, call in enumerate(read_calls(ROOT / "data/prompts/emoji-calibration.txt", 3)):
        outputs = []
        with recording(pipe, ["output"], lambda tap, name, x, kept=outputs: kept.append(x)):
            called(pipe, {**ARGUMENTS, **call}, image_seed(7, index))
        features = torch.stack(outputs).flatten(1).double()
        grams.append(features @ features.T / features.shape[1])
    # A run weighs less the further its outputs move.
    sizes = kernels[0].step_sizes[1:] ** 2
    moved = [float(sizes @ np.diff(np.diff(gram, axis=0), axis=1).diagonal()) for gram in grams]
    shares = np.mean(1 / np.array(moved)) * np.array(moved)
    expected = sum(gram.numpy() / share for gram, share in zip(grams, shares, strict=True)) / 3
    assert kernels[0].matrix("output") == pytest.approx(expected, rel=1e-9)
    assert kernels[0].runs == 3


def test_a_kernel_says_how_its_scheduler_moves_the_latents(pipe, kernels):
    """Whether it was recorded alone or with others."""
    alone = calibration_of(pipe).kernel(Kind.of("output.full.second-moment"))
    output, modules = kernels
    sigmas = np.append(output.timesteps / 1000, 0)
    np.testing.assert_allclose(output.step_sizes, np.diff(sigmas), rtol=1e-4)
    np.testing.assert_array_equal(alone.step_sizes, output.step_sizes)
    np.testing.assert_allclose(alone.matrix(), output.matrix(), rtol=1e-4)
    assert output.switches == alone.switches == () and modules.step_sizes is None


def test_timesteps_are_told_at_the_price_of_a_step(pipe, kernels):
    calls = []
    hook = pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(None))
    timesteps, switches, _ = outline(pipe, call_of(0))
    hook.remove()
    np.testing.assert_array_equal(timesteps, kernels[0].timesteps)
    assert len(calls) == 1 and switches == ()


def test_prompts_with_guidance_are_calibrated_in_batches(pipe):
    """A negative prompt that all calls share goes with each prompt of a batch."""
    calibration = calibration_of(pipe, true_cfg_scale=2.0, negative_prompt="green")
    kind = Kind.of("output.full.second-moment")
    together, alone = (calibration.kernel(kind, batch=batch) for batch in (3, 1))
    np.testing.assert_allclose(together.matrix(), alone.matrix(), rtol=1e-3)
    plain = calibration_of(pipe).kernel(kind)
    assert abs(plain.matrix() / alone.matrix() - 1).max() > 0.01


def test_more_full_steps_come_closer_to_the_full_run(pipe, kernels):
    def pixels(plan=None):
        image = sample_run(pipe, call_of(1), 3, Run("x", "x", plan)).frames[0]
        return torch.tensor(list(image.tobytes()), dtype=torch.float64)

    def error(full_steps):
        plan = METHODS["EigenCache-design"].plan(full_steps, kernels[0].timesteps, kernels[0])
        return float((pixels(plan) - pixels()).square().mean())

    assert error(8) == 0
    assert error(6) < error(2)

"""Sampling emoji-flux itself: what an image depends on, and what it does not."""

from pathlib import Path

import pytest
import torch

from eigencache.calibration.recording import Kind, record_kernels, recording
from eigencache.calibration.sampler import Settings, encode, image_seed, load_pipeline, sample
from eigencache.commands.prompts import read_prompts
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import PlanError
from reproduction.prompts import shard_indices
from reproduction.stages.sample import Run, sample_run, sample_shard

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(num_steps=8, height=64, width=64, max_sequence_length=16, dtype="float32")
PROMPTS = read_prompts(ROOT / "data/prompts/emoji-evaluation.txt", 4)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(ROOT / "data/emoji-flux", "float32")


def encoded(pipe, prompts):
    return [encode(pipe, prompt, SETTINGS) for prompt in prompts]


def sampled_shard(pipe, shard, *rest, **options):
    texts = encoded(pipe, [PROMPTS[index] for index in shard])
    return list(sample_shard(pipe, PROMPTS, texts, shard, *rest, **options))


@pytest.fixture(scope="module")
def kernels(pipe):
    prompts = read_prompts(ROOT / "data/prompts/emoji-calibration.txt", 3)
    kinds = map(Kind.of, ["output.full.second-moment", "modules.token-mean.cosine"])
    return record_kernels(pipe, encoded(pipe, prompts), SETTINGS, 7, list(kinds))


@pytest.fixture(scope="module")
def runs(kernels):
    output, modules = kernels
    ours = METHODS["EigenCache"].plan(4, output.timesteps, output)
    theirs = METHODS["EigenCache-published"].plan(4, modules.timesteps, modules)
    return [Run("full", 8), Run("fewer", 4), Run("ours", 8, ours), Run("theirs", 8, theirs)]


def hashes(records):
    return {(record["run"], record["prompt_index"]): record["sha256"] for record in records}


def test_images_do_not_depend_on_shards_or_order(pipe, runs, tmp_path):
    def sampled(*shards):
        parts = [
            sampled_shard(pipe, shard, runs, SETTINGS, 5, tmp_path / str(i), timed=0)
            for i, shard in enumerate(shards)
        ]
        return hashes(record for part in parts for record in part)

    together = sampled(range(4))
    assert len(set(together.values())) == len(runs) * 4
    assert sampled(*(shard_indices(4, i, 3) for i in range(3))) == together
    assert sampled(range(3, -1, -1)) == together


def test_records_state_what_was_done(pipe, runs, tmp_path):
    records = sampled_shard(pipe, range(2), runs, SETTINGS, 5, tmp_path, timed=1)
    by_run = {record["run"]: record for record in records if record["prompt_index"] == 0}
    assert [by_run[name]["full_steps"] for name in ("full", "fewer", "ours", "theirs")] == [
        8,
        4,
        4,
        4,
    ]
    assert by_run["fewer"]["num_steps"] == 4
    assert all(record["reference_seconds"] > 0 for record in by_run.values())
    assert all(r["reference_seconds"] is None for r in records if r["prompt_index"] == 1)
    assert all(Path(record["image"]).read_bytes()[:4] == b"\x89PNG" for record in records)


def test_seed_and_prompt_both_matter(pipe):
    run = Run("full", 8)
    texts = [encode(pipe, prompt, SETTINGS) for prompt in PROMPTS[:2]]
    images = [
        sample_run(pipe, text, SETTINGS, image_seed(5, index), run)[0].image.tobytes()
        for text in texts
        for index in (0, 1)
    ]
    assert len(set(images)) == 4


def test_every_step_full_is_bit_identical_to_no_cache(pipe, kernels):
    text = encode(pipe, PROMPTS[0], SETTINGS)
    plain = sample(pipe, text, SETTINGS, 1).image.tobytes()
    for tap in ("output", "modules"):
        plan = METHODS["FORA"].plan(8, kernels[0].timesteps, tap=tap)
        assert plan.full.all()
        made, full = sample_run(pipe, text, SETTINGS, 1, Run("x", 8, plan))
        assert full == 8 and made.image.tobytes() == plain


def test_plan_for_other_steps_is_refused_and_leaves_no_cache(pipe, runs):
    text = encode(pipe, PROMPTS[0], SETTINGS)
    plain = sample(pipe, text, SETTINGS, 1).image.tobytes()
    with pytest.raises(PlanError, match=r"made for 8 steps.*sampler is at"):
        sample_run(pipe, text, SETTINGS, 1, Run("ours", 12, runs[2].plan))
    assert sample(pipe, text, SETTINGS, 1).image.tobytes() == plain


def test_kernel_is_that_of_the_recorded_features(pipe, kernels):
    prompts = read_prompts(ROOT / "data/prompts/emoji-calibration.txt", 3)
    grams = []
    for index, prompt in enumerate(prompts):
        with recording(pipe.transformer, "output", "full") as trajectory:
            sample(pipe, encode(pipe, prompt, SETTINGS), SETTINGS, image_seed(7, index))
        features = torch.stack(trajectory["output"]).double()
        grams.append(features @ features.T / features.shape[1])
    expected = torch.stack(grams).mean(0).numpy()
    assert kernels[0].matrix("output") == pytest.approx(expected, rel=1e-9)
    assert kernels[0].runs == 3 and isinstance(kernels[1], Kernel)


def test_more_full_steps_come_closer_to_the_full_run(pipe, kernels):
    text = encode(pipe, PROMPTS[1], SETTINGS)

    def pixels(plan=None):
        image = sample_run(pipe, text, SETTINGS, 3, Run("x", 8, plan))[0].image
        return torch.tensor(list(image.tobytes()), dtype=torch.float64)

    def error(full_steps):
        plan = METHODS["EigenCache"].plan(full_steps, kernels[0].timesteps, kernels[0])
        return float((pixels(plan) - pixels()).square().mean())

    assert error(8) == 0
    assert error(6) < error(2)

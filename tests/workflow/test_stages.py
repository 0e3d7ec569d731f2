"""The stages and what they stand on: files, prompts, fetching, merging, the table, the metrics."""

import argparse
import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eigencache._files import replacing, sha256
from eigencache.commands.prompts import read_prompts
from reproduction.models.check import FetchError, verified
from reproduction.program import run
from reproduction.prompts import refuse_overlap, shard_indices
from reproduction.stages.fetch import fetch, pin
from reproduction.stages.merge import MergeError, merge

# ---- Files


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as part:
        assert part.suffix == ".csv"
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as part:
        part.write_text("half a ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with path.open() as reader:
        with replacing(path) as part:
            part.write_text("new")
        assert (reader.read(), path.read_text()) == ("old", "new")


def test_others_may_read_a_replaced_file(tmp_path):
    umask = os.umask(0o022)
    try:
        with replacing(tmp_path / "x") as part:
            part.write_text("x")
    finally:
        os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


# ---- Prompts


@pytest.fixture
def prompts(tmp_path):
    def write(text: str):
        path = tmp_path / "prompts.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_prompts_are_read_in_order(prompts):
    path = prompts("a cat\n  a dog, süß \na fish")
    assert read_prompts(path) == ["a cat", "a dog, süß", "a fish"]
    assert read_prompts(path, 2) == ["a cat", "a dog, süß"]


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("", None, "no prompts"),
        ("a\n\nb\n", None, "line 2: empty"),
        ("a\n   \n", None, "line 2: empty"),
        ("a\nb\n a \n", None, "line 3: the same prompt as line 1"),
        ("a\nb\n", 3, "3 prompts were asked for, but it has 2"),
    ],
)
def test_a_faulty_prompt_file_is_named(prompts, text, count, message):
    with pytest.raises(ValueError, match=rf"prompts\.txt.*{message}"):
        read_prompts(prompts(text), count)


def test_a_missing_prompt_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such prompt file"):
        read_prompts(tmp_path / "none.txt")


def test_a_leak_of_prompts_is_refused():
    refuse_overlap(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"2 calibration prompts are evaluation prompts.*'b'"):
        refuse_overlap(["a", "c", "b"], ["b", "c"])


@pytest.mark.parametrize("count", [7, 24])
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_cover_every_prompt_once_and_evenly(count, shards):
    parts = [list(shard_indices(count, shard, shards)) for shard in range(shards)]
    assert [index for part in parts for index in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_shards_than_prompts_are_refused():
    with pytest.raises(ValueError, match="3 shards for 2 prompts"):
        shard_indices(2, 0, 3)


@pytest.mark.parametrize(("shard", "shards"), [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard, shards):
    with pytest.raises(ValueError, match=f"shard {shard} is not one of the {shards}"):
        shard_indices(10, shard, shards)


# ---- Fetch


@pytest.fixture
def pinned(tmp_path):
    """Return (table, folder of the model's source, folder to fetch into) of a model `m`."""
    source, table = tmp_path / "source", tmp_path / "models.tsv"
    (source / "part").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "part" / "weights.bin").write_bytes(bytes(range(200)))
    pin("m", source).to_csv(table, sep="\t", index=False)
    return table, source, tmp_path / "models" / "m"


def test_a_model_is_fetched_whole_and_its_manifest_written(pinned):
    table, source, folder = pinned
    fetch(table, "m", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == ["config.json", "part/weights.bin"]
    for name, facts in manifest.items():
        assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert facts == {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    assert verified(folder / "manifest.json") == folder


def altered(path):
    path.write_bytes(b"\1" + path.read_bytes()[1:])


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def missing(path):
    path.unlink()


SPOILT = pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (altered, "its sha256 is not the pinned"),
        (truncated, "has 199 bytes, 200 are pinned"),
        (missing, "missing"),
    ],
)


@SPOILT
def test_a_spoilt_source_is_named_and_not_put_in_place(pinned, spoil, message):
    table, source, folder = pinned
    spoil(source / "part" / "weights.bin")
    with pytest.raises(FetchError, match=rf"source/part/weights\.bin: {message}.*restore it"):
        fetch(table, "m", folder)
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left <= {"config.json"}


@SPOILT
def test_a_spoilt_copy_is_found_out_and_fetched_anew(pinned, spoil, message):
    table, _, folder = pinned
    fetch(table, "m", folder)
    spoil(folder / "part" / "weights.bin")
    with pytest.raises(FetchError, match=rf"m/part/weights\.bin: {message}.*delete .*manifest"):
        verified(folder / "manifest.json")
    fetch(table, "m", folder)
    assert (folder / "part" / "weights.bin").read_bytes() == bytes(range(200))


def test_a_file_that_is_right_is_not_copied_again(pinned):
    table, source, folder = pinned
    fetch(table, "m", folder)
    before = (folder / "part" / "weights.bin").stat()
    shutil.rmtree(source)  # nor is its source needed any more
    fetch(table, "m", folder)
    after = (folder / "part" / "weights.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_unknown_model_lists_the_known(pinned):
    table, _, folder = pinned
    with pytest.raises(FetchError, match=r"no model 'x'; it has \['m'\]"):
        fetch(table, "x", folder)
    assert not folder.exists()


# ---- Merge


@pytest.fixture
def shards(tmp_path):
    """Write shards of records and images, and return their paths.

    Each argument is one shard: pairs of a run and a prompt's index; a run's method is x, but for c.
    """

    def write(*parts):
        paths = []
        for number, part in enumerate(parts):
            rows = []
            for name, index in part:
                image = tmp_path / f"{name}-{index}.png"
                image.write_bytes(f"{name} {index}".encode())
                method = "c" if name == "c" else "x"
                rows.append((name, method, index, image.as_posix(), sha256(image)))
            paths.append(tmp_path / f"{number:03d}.csv")
            table = pd.DataFrame(rows, columns=["run", "method", "prompt_index", "image", "sha256"])
            table.to_csv(paths[-1], index=False)
        return [path.as_posix() for path in paths]

    return write


def test_shards_in_any_order_merge_to_the_same_records(shards):
    paths = shards([("b", 0), ("a", 0), ("c", 0)], [("a", 2), ("b", 2)], [("b", 1), ("a", 1)])
    records = merge(paths, "x", 3)
    assert list(zip(records["run"], records["prompt_index"], strict=True)) == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2),
    ]  # fmt: skip
    backwards = merge(paths[::-1], "x", 3)
    pd.testing.assert_frame_equal(records.reset_index(drop=True), backwards.reset_index(drop=True))
    assert list(merge(paths, "c", 1)["run"]) == ["c"]
    with pytest.raises(MergeError, match="d is in none of"):
        merge(paths, "d", 3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[("a", 0), ("a", 2)]], r"run a: prompts \[1\] are in none"),
        ([[("a", 0), ("a", 1), ("b", 0)], [("a", 2), ("b", 2)]], r"run b: prompts \[1\]"),
        (
            [[("a", 0), ("a", 1)], [("a", 1), ("a", 2)]],
            r"\[1\] occur more than once, in .*001\.csv",
        ),
        ([[("a", i) for i in range(4)]], r"run a: prompts \[3\] of .*000\.csv.* not among the 3"),
    ],
)
def test_a_gap_a_double_or_a_stranger_is_named(shards, parts, message):
    with pytest.raises(MergeError, match=message):
        merge(shards(*parts), "x", 3)


@pytest.mark.parametrize("spoil", [missing, altered, truncated])
def test_a_missing_or_altered_image_is_named_with_its_folder(shards, tmp_path, spoil):
    paths = shards([("a", 0)], [("a", 1)])
    spoil(tmp_path / "a-1.png")
    with pytest.raises(ValueError, match=r"a-1\.png: missing or altered.* delete the folder "):
        merge(paths, "x", 2)


# ---- The command line


def test_a_fault_of_the_input_ends_in_one_plain_line(monkeypatch):
    def main(arguments):
        raise FetchError("weights.bin: missing")

    monkeypatch.setattr(sys, "argv", ["fetch.py"])
    with pytest.raises(SystemExit) as ended:
        run(main, argparse.ArgumentParser("fetch"))
    assert ended.value.code == "eigencache fetch: FetchError: weights.bin: missing"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fetch.py"])
    with pytest.raises(ZeroDivisionError):
        run(lambda arguments: 1 / 0, argparse.ArgumentParser("fetch"))


# ---- Metrics


@pytest.fixture
def image_file(tmp_path):
    """Write uint8 pixels as a PNG and return its path."""

    def write(name: str, pixels):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / name)
        return tmp_path / name

    return write


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_psnr_is_on_the_true_scale(image_file):
    from eigencache.metrics._psnr import psnr
    from eigencache.metrics.images import load_image

    one, two = noise(1), noise(2)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(one.flat, two.flat, strict=True)]
    expected = 10 * np.log10(255**2 / np.mean(squares))
    measured = psnr(load_image(image_file("1.png", one)), load_image(image_file("2.png", two)))
    assert measured == pytest.approx(expected, rel=1e-6)
    wrapped = 10 * np.log10(255**2 / np.mean((one - two) ** 2))  # uint8 less uint8 wraps around
    assert measured < 10 < 20 < wrapped


def test_identical_images_agree_wholly(image_file):
    from eigencache.metrics._psnr import psnr
    from eigencache.metrics._ssim import ssim
    from eigencache.metrics.images import load_image

    image = load_image(image_file("1.png", noise(1)))
    assert psnr(image, image) == np.inf
    assert ssim(image, image) == pytest.approx(1, abs=1e-9)


def test_ssim_falls_as_noise_grows(image_file):
    from eigencache.metrics._ssim import ssim
    from eigencache.metrics.images import load_image

    image = load_image(image_file("1.png", noise(1)))
    other = load_image(image_file("2.png", noise(2)))
    values = [ssim((1 - share) * image + share * other, image) for share in (0, 0.1, 0.3, 1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.2


def test_an_image_is_loaded_as_channels_rows_columns(image_file):
    from eigencache.metrics.images import load_image

    pixels = noise(1)[:20]
    image = load_image(image_file("1.png", pixels))
    assert image.shape == (1, 3, 20, 32)
    assert image[0, 2, 5, 7].item() == pixels[5, 7, 2] / 255


class Toy:
    """A metric of a set, whose features are an image's mean and the mean of its squares."""

    def features(self, image):
        return np.array([float(image.mean()), float(image.square().mean())])


class ToyScorers:
    """PSNR, a CLIP score that counts letters, and the toy."""

    def __init__(self):
        from eigencache.metrics._psnr import psnr

        self.calls = []
        self.images = {"psnr": psnr, "clip_score": self.letters}
        self.sets = {"frechet_lite0": Toy()}

    def letters(self, reference, image, prompt):
        self.calls.append(prompt)
        return float(len(prompt))


def score_of(paths, references=("full",), **changes):
    from reproduction.stages.score import score_records

    row = {"run": "x", "prompt_index": 0, "prompt": "a cat", "seed": 5}
    reference = pd.DataFrame([row | {"run": run, "image": paths[0]} for run in references])
    records = pd.DataFrame([row | {"image": paths[1]} | changes])
    return score_records(records, reference, ToyScorers())


def test_an_image_is_scored_against_the_full_run_and_its_prompt(image_file):
    from eigencache.metrics._psnr import psnr
    from eigencache.metrics.images import load_image

    paths = image_file("1.png", noise(1)), image_file("2.png", noise(2))
    scores = score_of(paths)
    assert list(scores) == ["run", "prompt_index", "reference", "psnr", "clip_score"]
    row = scores.iloc[0]
    assert row["psnr"] == psnr(*map(load_image, paths))
    assert (row["run"], row["prompt_index"], row["clip_score"]) == ("x", 0, 5.0)


def test_an_image_is_scored_against_every_reference_itself_among_them(image_file):
    from reproduction.stages.score import score_records

    paths = [str(image_file(f"{i}.png", noise(i))) for i in range(4)]
    rows = [("full", 0), ("full", 1), ("x", 0), ("x", 1)]
    records = pd.DataFrame(rows, columns=["run", "prompt_index"])
    records = records.assign(prompt=["a", "bb"] * 2, seed=1, image=paths)
    scorers = ToyScorers()
    scores = score_records(records[2:], records, scorers)
    assert scores[["run", "prompt_index", "reference"]].values.tolist() == [
        ["x", 0, "full"], ["x", 0, "x"], ["x", 1, "full"], ["x", 1, "x"],
    ]  # fmt: skip
    assert (scores["psnr"] == np.inf).tolist() == [False, True, False, True]
    assert scores["clip_score"].tolist() == [1, 1, 2, 2]
    assert scorers.calls == ["a", "bb"]  # what is not paired is asked for once


def test_features_of_shards_make_the_sets_of_the_whole(image_file):
    from eigencache.metrics.scoring import features_of
    from eigencache.metrics.sets import frechet, joined, score_sets

    paths = [str(image_file(f"{i}.png", noise(i))) for i in range(8)]
    runs = pd.DataFrame({"run": ["full"] * 4 + ["x"] * 4, "image": paths})
    whole = features_of(runs, ToyScorers())
    parts = [features_of(runs.iloc[some], ToyScorers()) for some in ([0, 1, 4, 5], [2, 3, 6, 7])]
    assert all(np.array_equal(joined(parts)[name], whole[name]) for name in whole)
    sets = score_sets(joined(parts), whole, ["x", "full"], ["full"])
    values = np.array([[p.mean(), np.square(p).mean()] for p in (noise(i) / 255 for i in range(8))])
    assert sets["run"].tolist() == ["x", "full"] and sets["reference"].tolist() == ["full"] * 2
    expected = [frechet(values[:4], values[4:]), 0]
    assert sets["frechet_lite0"].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    for others in ({}, {"frechet_lite0/full": values[:3]}):
        with pytest.raises(ValueError, match="x and full are not of the same prompts"):
            score_sets(whole, others, ["x"], ["full"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a dog"}, "prompts or noise differ"),
        ({"seed": 6}, "prompts or noise differ"),
        ({"prompt_index": 3}, r"full: no reference image of prompts \[3\]"),
    ],
)
def test_an_image_of_another_prompt_or_noise_is_not_scored(image_file, changes, message):
    with pytest.raises(ValueError, match=message):
        score_of((image_file("1.png", noise(1)), image_file("2.png", noise(2))), **changes)


def test_an_image_of_another_size_is_not_scored(image_file):
    with pytest.raises(ValueError, match="sizes differ"):
        score_of((image_file("1.png", noise(1)), image_file("2.png", noise(2, 40))))


def test_references_are_chosen_by_the_names_of_runs():
    from reproduction.stages.score import choose_references

    one = pd.DataFrame({"run": ["a-07", "a-09"], "prompt_index": 0})
    two = pd.DataFrame({"run": ["full"], "prompt_index": 0})
    assert choose_references([one, two], ["full", "a-09"])["run"].tolist() == ["full", "a-09"]
    with pytest.raises(ValueError, match=r"no run 'b'.*\['a-07', 'a-09', 'full'\]"):
        choose_references([one, two], ["b"])


# ---- Sampling and calibration


def test_image_seeds_are_stable_and_fit_a_signed_integer():
    from eigencache.calibration.sampler import image_seed

    assert image_seed(2026, 0) == 4739820308868465158
    assert image_seed(7, 15) == 4524261756309493582
    assert 0 <= image_seed(2026, 0) < 2**63


def test_image_seeds_differ_between_prompts_and_experiments():
    from eigencache.calibration.sampler import image_seed

    seeds = {image_seed(seed, index) for seed in range(20) for index in range(50)}
    assert len(seeds) == 20 * 50


@pytest.mark.parametrize("tap", ["output", "modules"])
def test_calibration_records_every_stream_at_every_step(tap):
    import torch
    from helpers import tiny_pipeline

    from eigencache.calibration._calls import called
    from eigencache.calibration.recording import recording

    pipe, found, latents = tiny_pipeline(), {}, []
    call = {"num_inference_steps": 5, "height": 16, "width": 16}
    call |= {"prompt_embeds": torch.ones(1, 3, 12), "pooled_prompt_embeds": torch.ones(1, 10)}

    def keep(tap, name, feature):
        found.setdefault(name, []).append(feature)

    def after(pipe, step, timestep, tensors):
        latents.append(tensors["latents"].clone())
        return {}

    with recording(pipe, [tap], keep) as recorder:
        called(pipe, call | {"callback_on_step_end": after}, 0)
    called(pipe, call, 0)  # no longer recorded
    assert {len(features) for features in found.values()} == {5} == {len(recorder.timesteps)}
    if tap == "output":
        moved = latents[3] - latents[2]
        sigmas = pipe.scheduler.sigmas
        torch.testing.assert_close(moved, (sigmas[4] - sigmas[3]) * found["output"][3])
    else:
        assert found["single_transformer_blocks.1.proj_out"][0].shape == (1, 3 + 16, 32)


def test_images_and_videos_are_files_and_folders_of_frames(tmp_path):
    from PIL import Image

    from eigencache._frames import frames_of, hash_of_frames, write_frames
    from reproduction.tables.tables import still_of

    draw = np.random.default_rng(0)
    frames = [Image.fromarray(draw.integers(0, 256, (8, 9, 3), np.uint8)) for _ in range(3)]
    image, video = write_frames(frames[:1], tmp_path / "0"), write_frames(frames, tmp_path / "1")
    assert (image.name, video.name) == ("0.png", "1") and frames_of(image) == [image]
    assert still_of(image) == image and still_of(video) == video / "00001.png"
    for path, frame in zip(frames_of(video), frames, strict=True):
        assert Image.open(path).tobytes() == frame.tobytes()  # lossless
    before = hash_of_frames(video)
    write_frames(frames[:2], tmp_path / "1")
    assert len(frames_of(video)) == 2 and hash_of_frames(video) != before
    with pytest.raises(FileNotFoundError, match="neither an image nor a folder of frames"):
        frames_of(tmp_path / "2")


def test_scores_of_a_video_are_of_its_frames_together(tmp_path):
    from PIL import Image

    from eigencache._frames import frames_of, write_frames
    from eigencache.calibration.quality import psnr
    from eigencache.metrics._ssim import ssim
    from eigencache.metrics.images import load_image
    from eigencache.metrics.scorers import Scorers
    from eigencache.metrics.scoring import score_records

    draw = np.random.default_rng(0)
    rows, stacks = [], []
    for name in ("full", "a"):
        levels = draw.integers(0, 256, (2, 3, 12, 13, 3), np.uint8)
        for index, frames in enumerate(levels):
            images = list(map(Image.fromarray, frames))
            path = write_frames(images, tmp_path / name / str(index))
            rows.append({"run": name, "prompt_index": index, "prompt": "p", "seed": index,
                         "image": path.as_posix()})  # fmt: skip
        stacks.append(levels)
    shutil.copy(tmp_path / "full/0/00000.png", tmp_path / "a/0/00000.png")  # as given
    stacks[1][0, 0] = stacks[0][0, 0]
    records = pd.DataFrame(rows)
    of = {name: records[records["run"] == name] for name in ("full", "a")}
    scores = score_records(of["a"], of["full"], Scorers({"psnr": [], "ssim": []}))
    np.testing.assert_allclose(scores["psnr"], list(map(psnr, *stacks)))
    for index, score in enumerate(scores["ssim"]):
        both = (map(load_image, frames_of(tmp_path / name / str(index))) for name in ("full", "a"))
        assert score == pytest.approx(np.mean([ssim(*pair) for pair in zip(*both, strict=True)]))
    same = score_records(of["full"], of["full"], Scorers({"psnr": []}))
    assert (same["psnr"] == float("inf")).all()
    (tmp_path / "a/1/00002.png").unlink()
    with pytest.raises(ValueError, match="2 and 3 frames"):
        score_records(of["a"], of["full"], Scorers({"psnr": []}))

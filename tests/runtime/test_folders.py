"""`eigencache score`: folders of images made elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eigencache import cli
from eigencache.metrics._psnr import psnr
from eigencache.metrics._ssim import ssim
from eigencache.metrics.folders import FolderError, model_folders, pair
from eigencache.metrics.images import load_image
from eigencache.metrics.statistics import mean_interval

NAMES = ["a.png", "b.png", "c.png"]


def fill(folder, seed, names=NAMES, size=(24, 32)):
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("full", "one", "two")):
        fill(tmp_path / name, seed)
    (tmp_path / "full/notes.txt").write_text("no image")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fish\n")
    return tmp_path


def score(*arguments):
    """Run the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eigencache", "score", *arguments])
        cli.main()


def test_folders_are_scored_as_the_metrics_score_their_images(folders, capsys):
    score(
        "--reference", "full", "--images", "x=one", "--images", "y=two", "--prompts",
        "prompts.txt",
        "--metrics", "psnr", "ssim", "--out", "out/scores.csv",
    )  # fmt: skip
    table = pd.read_csv(folders / "out/scores.csv")
    assert list(table) == ["run", "prompt_index", "file", "psnr", "ssim"]
    assert table["run"].tolist() == 3 * ["x"] + 3 * ["y"]
    assert table["file"].tolist() == 2 * NAMES
    for row in table.itertuples():
        images = [load_image(folders / f / row.file)
                  for f in ("full", {"x": "one", "y": "two"}[row.run])]  # fmt: skip
        assert (row.psnr, row.ssim) == pytest.approx((psnr(*images), ssim(*images)), rel=1e-12)
    assert [path.name for path in (folders / "out").iterdir()] == ["scores.csv"]
    told = capsys.readouterr().out
    assert f"{table['psnr'][:3].mean():.2f} " in told
    assert "No intervals: there are 3 images, and it takes 6 or more." in told


def test_the_first_prompts_are_enough_for_fewer_images(folders):
    (folders / "prompts.txt").write_text("a cat\na dog\na fish\na bird\n")
    line = "--reference full --images x=one --prompts prompts.txt --metrics psnr --out o.csv"
    with pytest.raises(SystemExit, match="there are 4 prompts"):
        score(*line.split())
    score(*line.split(), "--num-prompts", "3")
    assert len(pd.read_csv(folders / "o.csv")) == 3


def test_an_interrupt_is_one_line(folders, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("eigencache.metrics.command._score", interrupted)
    with pytest.raises(SystemExit) as exit:
        score("--reference", "full", "--images", "x=one", "--prompts", "p", "--out", "o.csv")
    assert exit.value.code == 130
    assert capsys.readouterr().err == "eigencache: interrupted\n"


def test_enough_images_have_an_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [f"{i}.png" for i in range(7)]
    fill(tmp_path / "full", 0, names)
    fill(tmp_path / "one", 1, names)
    (tmp_path / "prompts.txt").write_text("\n".join(map(str, range(7))))
    line = "--reference full --images x=one --prompts prompts.txt --metrics psnr --out o.csv"
    score(*line.split())
    told = capsys.readouterr().out
    assert "95% bootstrap intervals over 7 images" in told
    mean, low, high = mean_interval(pd.read_csv(tmp_path / "o.csv")["psnr"])
    assert f"x {mean:.2f} [{low:.2f}, {high:.2f}]" in " ".join(told.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "one"], "write NAME=DIR"),
        (["--images", "x=one", "x=two"], "--images x: stated twice"),
        (["--images", "x=none"], "none: no such folder"),
        (["--images", "x=one", "--metrics", "psnr", "st_lpips_alex"],
         "models/ST-LPIPS-alex: no such folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(folders, arguments, message):
    fixed = ["--reference", "full", "--prompts", "prompts.txt", "--out", "out.csv"]
    with pytest.raises(SystemExit) as exit:
        score(*fixed, *arguments)
    assert message in exit.value.code and "\n" not in exit.value.code
    assert not (folders / "out.csv").exists()


def test_images_in_the_order_of_their_names_have_the_prompts_in_theirs(folders):
    records = pair("full", {"x": "one"}, ["a cat", "a dog", "a fish"])
    assert records["run"].tolist() == 3 * ["reference"] + 3 * ["x"]
    assert records["prompt"].tolist() == 2 * ["a cat", "a dog", "a fish"]
    assert records["image"].tolist()[3:] == ["one/a.png", "one/b.png", "one/c.png"]


def test_names_that_differ_are_named(folders):
    (folders / "one/b.png").rename(folders / "one/d.png")
    with pytest.raises(FolderError, match=r"only in the first: d\.png, only in the second: b\.png"):
        pair("full", {"x": "one"}, ["a", "b", "c"])


def test_sizes_that_differ_are_named(folders):
    fill(folders / "one", 5, ["c.png"], (24, 40))
    with pytest.raises(FolderError, match=r"sizes differ, 40x24 and 32x24: c\.png"):
        pair("full", {"x": "one"}, ["a", "b", "c"])


def test_prompts_that_are_too_few_are_counted(folders):
    with pytest.raises(FolderError, match="full has 3 images, but there are 2 prompts"):
        pair("full", {"x": "one"}, ["a", "b"])


def test_models_are_found_or_said_how_to_fetch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    found = model_folders(["psnr", "clip_score"], "mine", {"mine": "elsewhere"})
    assert found == {"psnr": [], "clip_score": [Path("elsewhere")]}
    with pytest.raises(FolderError, match=r"snakemake models/LPIPS-alex/manifest\.json"):
        model_folders(["lpips_alex"], "mine", {})

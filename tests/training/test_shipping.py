"""What the training of emoji-flux ships: emoji-clip, the cards, the bundle for a GPU elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import bundle, card, clip, data, run, steps, text

ROOT = Path(__file__).parents[2]
SELECTION = ROOT / "data" / "emoji" / "emoji.tsv"
FLUX = ROOT / "data" / "emoji-flux"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few() -> list[data.Emoji]:
    """The first emoji alone; some couples of them are held out."""
    return data.read_selection(SELECTION)[:10]


@pytest.fixture(scope="module")
def icons(few) -> torch.Tensor:
    """A plain square of its own shade for each emoji."""
    icons = torch.zeros(len(few), 4, data.SIZE, data.SIZE)
    icons[:, :, 16:112, 16:112] = 1
    icons[:, 0] *= torch.linspace(0, 1, len(few))[:, None, None]
    return icons


@pytest.fixture(scope="module")
def trained_clip(few, icons, tmp_path_factory) -> tuple[Path, dict]:
    """A clip trained for two iterations, and its report."""
    out = tmp_path_factory.mktemp("clip")
    report = clip.train(
        few,
        icons,
        text.kept_tokenizers(few, out / "tokenizers")[0],
        out,
        lambda elapsed: steps.Budget(1, 2, elapsed),
        CPU,
        batch=4,
        pool=8,
    )
    return out, report


def test_clip_is_open_clip_s_own(trained_clip):
    open_clip = pytest.importorskip("open_clip")
    out, report = trained_clip
    assert report["iterations"] == 2 and report["one"]["captions"] == 8 * 10
    assert report["two"]["pictures"] > 10 and 0 <= report["two"]["accuracy"] <= 1
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out / 'model'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out / 'model'}")
    picture = preprocess(Image.new("RGB", (128, 128), "red"))[None]
    assert picture.shape[-1] == data.SIZE
    tokens = tokenize(["a red apple on a blue background", "a pear on a red background"])
    assert tokens.shape == (2, text.TOKENS)
    similarity = model.eval().encode_image(picture, True) @ model.encode_text(tokens, True).T
    assert similarity.shape == (1, 2) and similarity.isfinite().all()


def test_pictures_keep_their_captions(few, icons):
    painter = data.Painter(icons, CPU)
    rows = torch.tensor([[9, 10, 0], [0, 9, 0], [0, 10, 0]])  # one thing, two, one
    images = clip.Pictures(painter, rows).images(torch.arange(3))
    assert images[0, 0, 64, 64] > 0.9 and images[2, 0, 64, 64] < -0.9
    assert images[1, 0, 64, 32] < -0.9 and images[1, 0, 64, 96] > 0.9


def test_the_same_caption_twice_is_no_mistake(few):
    torch.manual_seed(0)
    tokenizer = text.build_tokenizers(few)[0]
    model = clip.build(clip.model_config(tokenizer))
    rows = torch.tensor([[1, 10, 2], [1, 10, 2]])
    tokens = text.Parts(tokenizer, few, CPU).ids(rows).long()
    images = torch.rand(2, 3, data.SIZE, data.SIZE) * 2 - 1
    with torch.no_grad():
        same = clip.contrastive_loss(model, images, tokens, rows)
        other = clip.contrastive_loss(model, images, tokens, torch.tensor([[1, 10, 2], [3, 10, 2]]))
    assert same < 1e-4 < 0.1 < other


def test_cards_read_the_reports(trained_clip, tmp_path, monkeypatch):
    trained, out = tmp_path / "run", tmp_path / "flux"
    shutil.copytree(
        FLUX, trained / "pipeline", ignore=shutil.ignore_patterns("*.png", "*.md", "reports")
    )
    shutil.copytree(FLUX / "reports", trained, dirs_exist_ok=True)
    (trained / "proof.json").rename(trained / "emoji-flux-proof.json")
    shutil.copy(FLUX / "contact-sheet.png", trained / "emoji-flux.png")
    arguments = ["card", "--data", str(SELECTION), "--flux", str(trained), str(out)]
    arguments += ["--clip", str(trained_clip[0]), str(tmp_path / "clip-card")]
    monkeypatch.setattr("sys.argv", arguments)
    card.main()
    written = (out / "README.md").read_text(encoding="utf-8")
    proof = json.loads((FLUX / "reports" / "proof.json").read_text(encoding="utf-8"))
    assert written == (FLUX / "README.md").read_text(encoding="utf-8")
    for kind in ("one", "two"):
        assert f"**{proof[kind]['right']} of {proof[kind]['captions']}**" in written
    assert "height=128" in written and "max_sequence_length=24" in written
    assert (out / "model_index.json").exists() and (out / "contact-sheet.png").exists()
    of_clip = (tmp_path / "clip-card" / "README.md").read_text(encoding="utf-8")
    assert f"**{trained_clip[1]['two']['accuracy']:.1%}**" in of_clip
    for line in [*written.splitlines(), *of_clip.splitlines()]:
        assert "{" not in line and (len(line) <= 100 or line.startswith("|"))


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A small picture for every emoji, and one that is no emoji of the selection."""
    folder = tmp_path_factory.mktemp("assets")
    picture = Image.fromarray(np.full((8, 8, 4), 200, dtype=np.uint8))
    for name in [*(emoji.hexcode for emoji in data.read_selection(SELECTION)), "1f9ff-200d"]:
        picture.save(folder / f"{name}.webp")
    return folder


def build(assets: Path, out: Path) -> None:
    """A bundle without wheels, which would be downloaded."""
    folder = ROOT / "data" / "prompts"
    apart = [folder / f"emoji-{kind}.txt" for kind in ("evaluation", "calibration")]
    bundle.build(SELECTION, assets, folder / "emoji-card.txt", apart, FLUX, out, packages=())


@pytest.mark.slow
def test_bundle_has_all_that_the_training_reads(assets, tmp_path):
    out = tmp_path / "bundle"
    build(assets, out)
    build(assets, out)  # a bundle is replaced
    assert len(list(out.glob("assets/*.webp"))) == 316
    run.check_start(out / "start")
    subprocess.run(["bash", "-n", str(out / "go.sh")], check=True)
    # As a machine elsewhere runs it, with a hard stop that leaves no time for steps and pictures.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        "OUT": str(tmp_path / "results"),
        "UNTIL": "0.1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "bash",
        str(out / "go.sh"),
        *["--device", "cpu", "--pool", "4", "--held-out", "4", "--batch", "2"],
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vae: done before" in done.stdout and "no time left for the proof" in done.stdout
    with tarfile.open(tmp_path / "results" / "reports.tar") as archive:
        report = json.load(archive.extractfile("flow.json"))
    assert report["iterations"] == 0 and report["earlier"]["iterations"] > 0
    assert report["held_out_loss"] < 1  # the weights given; fresh ones have about 2
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names >= {"base.tar", "transformer.tar", "teacher-transformer.tar", "log.txt"}


def test_bundle_refuses_what_it_would_destroy_or_lack(assets, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="no bundle"):
        build(assets, tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="no picture in"):
        build(tmp_path, tmp_path / "bundle")
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json: --start takes"):
        run.check_start(tmp_path)

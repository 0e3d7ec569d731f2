"""ImageReward in its own environment: the process, and where one is at hand the real package.

Building the environment downloads gigabytes, so it is done only if it is asked for:

    EIGENCACHE_TEST_IMAGEREWARD=1 pytest tests/runtime/test_image_reward.py

builds it by its rule; EIGENCACHE_IMAGEREWARD=FOLDER takes one that is there. The checkpoint is of
the real shape with random weights, 1.8 GB on disk.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from eigencache.metrics._image_reward import ENVIRONMENT, ImageReward
from eigencache.metrics.images import load_image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

STUB = """
import csv, os
from PIL import Image

class Model:
    def score(self, prompt, image):
        print("a message of the package")
        if prompt == "fail":
            raise RuntimeError("out of memory")
        with Image.open(image) as picture:
            return sum(picture.getpixel((0, 0))) + len(prompt)

def load(checkpoint, device, med_config):
    assert device == "cpu" and checkpoint.endswith("/ImageReward.pt")
    assert med_config.endswith("/med_config.json")
    assert open("bert-base-uncased/vocab.txt").read() == "a vocabulary"
    print("load checkpoint from", checkpoint)
    return Model()
"""


@pytest.fixture
def stub(tmp_path):
    """An environment whose ImageReward is a stub, and folders for it."""
    for name in ("env/bin", "model", "tokenizer", "modules"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "modules/ImageReward.py").write_text(STUB)
    python = tmp_path / "env/bin/python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/modules exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "env/installed.txt").write_text("clip==1\nimage-reward==1.5\n")
    (tmp_path / "tokenizer/vocab.txt").write_text("a vocabulary")
    return ImageReward(tmp_path / "model", tmp_path / "tokenizer", "cpu", tmp_path / "env")


def plain(values):
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None].expand(1, 3, 8, 8) / 255


def test_images_and_prompts_reach_the_process_and_scores_come_back(stub):
    prompts = ["a red apple", 'a "dog", süß', "x"]
    for i, prompt in enumerate(prompts):
        assert stub(None, plain([10 * i, 1, 2]), prompt) == 10 * i + 3 + len(prompt)
    assert stub.version == "1.5"


def test_one_process_serves_all_images_and_ends_with_the_metric(stub):
    stub(None, plain([1, 2, 3]), "a")
    process = stub.process
    stub(None, plain([1, 2, 3]), "b")
    assert stub.process is process and process.poll() is None
    stub.__del__()
    assert process.returncode == 0


def test_a_process_that_fails_is_told_and_its_message_shown(stub, capfd):
    with pytest.raises(ValueError, match="ended with code 1 before it gave a score"):
        stub(None, plain([1, 2, 3]), "fail")
    assert "out of memory" in capfd.readouterr().err


def test_without_an_environment_it_says_how_to_build_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"snakemake {ENVIRONMENT}/installed\.txt.*`metri"):
        ImageReward(tmp_path, tmp_path, "cpu", tmp_path)


def test_the_conda_file_asks_for_the_same():
    lines = (ROOT / "envs/imagereward.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    listed = yaml.safe_load((ROOT / "envs/imagereward.yaml").read_text())["dependencies"]
    assert listed[-1]["pip"] == wanted


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The real environment, if one is named or asked for."""
    if "EIGENCACHE_IMAGEREWARD" in os.environ:
        return Path(os.environ["EIGENCACHE_IMAGEREWARD"])
    if not os.environ.get("EIGENCACHE_TEST_IMAGEREWARD"):
        pytest.skip("EIGENCACHE_TEST_IMAGEREWARD=1 builds ImageReward's environment (5 GB)")
    folder = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "config.yaml", "workflow", "envs", "data", "eigencache"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", f"{ENVIRONMENT}/installed.txt"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the environment cannot be built here: {done.stdout[-1000:]}")
    return folder / ENVIRONMENT


def test_scores_are_those_of_the_package(environment, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "image.png")
    made = subprocess.run(
        [environment / "bin/python", ROOT / "tests/image_reward/random_checkpoint.py", tmp_path],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    expected = float(made.stdout.split("score:")[1])
    score = ImageReward(tmp_path, tmp_path / "bert-base-uncased", "cpu", environment)
    image = load_image(tmp_path / "image.png")
    measured = score(None, image, "a red apple")
    assert measured == pytest.approx(expected, rel=1e-6) and abs(measured) > 1e-3
    assert score(None, image, "a blue dog") != pytest.approx(measured, rel=1e-4)
    other = torch.from_numpy(pixels[1] / 255).permute(2, 0, 1)[None]
    assert score(None, other, "a red apple") != pytest.approx(measured, rel=1e-4)

"""ImageReward: how well people like an image for its prompt, as a network predicts it.

Xu et al. 2023, arXiv:2304.05977, by their package `image-reward`, whose requirements conflict with
those of this package. So it runs as a process in an environment of its own, which the rule
`image_reward_environment` builds from envs/imagereward.txt.
"""

import csv
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from eigencache.metrics.images import to_pil

# The environment: its Python, and a list of what is installed there, with versions.
ENVIRONMENT = Path("build/imagereward")
SCRIPT = Path(__file__).with_name("image_reward_process.py")


def scorer(folder: Path, tokenizer: Path, device: str) -> "ImageReward":
    """Return ImageReward.

    Args:
        folder: of the model ImageReward: `ImageReward.pt` and `med_config.json`.
        tokenizer: of the model bert-base-uncased: its `vocab.txt`.
        device: where it runs.
    """
    environment = os.environ.get("EIGENCACHE_IMAGEREWARD", ENVIRONMENT)
    return ImageReward(folder, tokenizer, device, environment)


class ImageReward:
    """The ImageReward of an image and its prompt, scaled to mean 0 and deviation 1 in its training.

    The process starts with the first image and ends with this object.

    Args:
        folder, tokenizer, device: see `scorer`.
        environment: a folder with `bin/python` and `installed.txt`, as the rule makes it.

    Raises:
        FileNotFoundError: the environment is not there; the message says how to build it.
        ValueError: the process ended without a score; what it printed is above.
    """

    def __init__(
        self, folder: str | os.PathLike, tokenizer: str | os.PathLike, device: str = "cpu",
        environment: str | os.PathLike = ENVIRONMENT,
    ):  # fmt: skip
        installed = Path(environment) / "installed.txt"
        if not installed.is_file():
            raise FileNotFoundError(
                f"{installed}: no such file. `snakemake {ENVIRONMENT}/installed.txt --cores 1` "
                "builds ImageReward's environment; EIGENCACHE_IMAGEREWARD=FOLDER names another. Or "
                "take image_reward out of `metrics`"
            )
        versions = dict(line.split("==") for line in installed.read_text().splitlines() if line)
        self.version = versions["image-reward"]
        self.command = [
            Path(environment) / "bin/python", SCRIPT, "--device", device, "--tokenizer", tokenizer,
            "--checkpoint", Path(folder) / "ImageReward.pt",
            "--med-config", Path(folder) / "med_config.json",
        ]  # fmt: skip
        self.process: subprocess.Popen | None = None

    def __call__(self, reference: torch.Tensor | None, image: torch.Tensor, prompt: str) -> float:
        process = self.process
        if process is None:
            process = self.process = subprocess.Popen(
                list(map(str, self.command)), encoding="utf-8", env=_environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert process.stdin and process.stdout  # they are pipes
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.bmp"  # lossless, and written at once
            to_pil(image).save(path)
            try:
                csv.writer(process.stdin).writerow([path, prompt])
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended, so there is nothing to read
            answer = process.stdout.readline()
        if not answer:
            raise ValueError(
                f"image_reward: the process ended with code {process.wait()} before it gave a "
                "score; what it printed stands above"
            )
        return float(answer)

    def __del__(self) -> None:
        if process := getattr(self, "process", None):
            process.stdin.close()  # which ends it
            process.stdout.close()
            process.wait()


def _environment() -> dict[str, str]:
    """Return this process's environment variables without those that point to its packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONUTF8": "1",
    }

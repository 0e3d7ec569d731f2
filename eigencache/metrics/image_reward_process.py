"""ImageReward: read a CSV of images and prompts, write a score a line. It runs in its own
environment (envs/imagereward.txt), and needs nothing else of this project:

    printf '%s\\n' '1.png,a red apple' |
        python image_reward_process.py --checkpoint ImageReward.pt --med-config med_config.json \\
            --tokenizer FOLDER --device cpu

The tokenizer is a folder with that of bert-base-uncased. Each row is answered as it is read.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
from typing import Any


def load(checkpoint: str, med_config: str, tokenizer: str, device: str) -> Any:
    """Return the model. The package names its tokenizer `bert-base-uncased`, relative to here."""
    import ImageReward  # its messages go to stderr, since scores are to stand alone

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(tokenizer, os.path.join(folder, "bert-base-uncased"))
        os.chdir(folder)
        try:
            return ImageReward.load(checkpoint, device=device, med_config=med_config)
        finally:
            os.chdir(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=os.path.abspath)
    parser.add_argument("--med-config", required=True, type=os.path.abspath)
    parser.add_argument("--tokenizer", required=True, type=os.path.abspath)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stdout(sys.stderr):
        import torch

        model = load(**vars(arguments))
        rows = csv.reader(iter(sys.stdin.readline, ""))
        for image, prompt in rows:
            with torch.no_grad():
                score = model.score(prompt, image)
            print(repr(score), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()

"""Metrics of an image: against a reference image, and against its prompt."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


def load_image(path: str | os.PathLike) -> torch.Tensor:
    """Return an RGB image as float64 `[1, 3, height, width]` from 0 to 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, for a data range of 1; inf where they agree.

    Args:
        image, reference: float64 `[1, 3, height, width]` from 0 to 1.
    """
    return float(peak_signal_noise_ratio(image, reference, data_range=1.0))


def ssim(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the structural similarity, Gaussian window of 11 pixels, for a data range of 1."""
    return float(structural_similarity_index_measure(image, reference, data_range=1.0))


class ClipScore:
    """100 times the cosine between the CLIP embeddings of an image and its prompt.

    Args:
        folder: an open_clip model: `open_clip_config.json`, weights, tokenizer.
    """

    def __init__(self, folder: str | os.PathLike):
        name = f"local-dir:{Path(folder)}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.model = self.model.double().eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def __call__(self, path: str | os.PathLike, prompt: str) -> float:
        with Image.open(path) as image:
            pixels = self.preprocess(image.convert("RGB"))[None].double()
        seen = self.model.encode_image(pixels, normalize=True)
        read = self.model.encode_text(self.tokenizer([prompt]), normalize=True)
        return float(100 * (seen * read).sum())


def score(row: Mapping, reference: str | os.PathLike, clip_score: ClipScore) -> dict[str, float]:
    """Return every metric of one recorded image (`image` and `prompt` of a record)."""
    image, other = load_image(row["image"]), load_image(reference)
    return {
        "psnr": psnr(image, other),
        "ssim": ssim(image, other),
        "clip_score": clip_score(row["image"], row["prompt"]),
    }

"""Metrics of an image against a reference image."""

import os

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


def load_image(path: str | os.PathLike) -> torch.Tensor:
    """Return an RGB image as float64 `[1, 3, height, width]` from 0 to 1."""
    with Image.open(path) as image:
        return pixels(image)


def pixels(image: Image.Image) -> torch.Tensor:
    """Return an image as RGB, float64 `[1, 3, height, width]` from 0 to 1."""
    values = np.asarray(image.convert("RGB"), np.float64) / 255
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, for a data range of 1; inf where they agree.

    Args:
        image, reference: float64 `[1, 3, height, width]` from 0 to 1.
    """
    return float(peak_signal_noise_ratio(image, reference, data_range=1.0))


def ssim(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the structural similarity, Gaussian window of 11 pixels, for a data range of 1."""
    return float(structural_similarity_index_measure(image, reference, data_range=1.0))

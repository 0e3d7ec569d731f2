"""The peak signal-to-noise ratio."""

from collections.abc import Callable

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio


def scorer(device: str) -> Callable[..., float]:
    """Return `psnr`, which is the same on any device."""
    return psnr


def psnr(reference: torch.Tensor, image: torch.Tensor, prompt: str = "") -> float:
    """Return the peak signal-to-noise ratio in dB, for a data range of 1; inf where they agree.

    Args:
        reference, image: float64 `[1, 3, height, width]` from 0 to 1.
        prompt: not used.
    """
    return float(peak_signal_noise_ratio(image, reference, data_range=1.0))

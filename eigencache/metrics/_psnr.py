"""The peak signal-to-noise ratio."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, for a data range of 1; inf where they agree.

    Args:
        image, reference: float64 `[1, 3, height, width]` from 0 to 1.
    """
    return float(peak_signal_noise_ratio(image, reference, data_range=1.0))

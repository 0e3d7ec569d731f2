"""The structural similarity."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure


def ssim(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the structural similarity, Gaussian window of 11 pixels, for a data range of 1.

    Args:
        image, reference: float64 `[1, 3, height, width]` from 0 to 1.
    """
    return float(structural_similarity_index_measure(image, reference, data_range=1.0))

"""Images as tensors."""

import os

import numpy as np
import torch
from PIL import Image


def load_image(path: str | os.PathLike) -> torch.Tensor:
    """Return an RGB image as float64 `[1, 3, height, width]` from 0 to 1."""
    with Image.open(path) as image:
        return pixels(image)


def pixels(image: Image.Image) -> torch.Tensor:
    """Return an image as RGB, float64 `[1, 3, height, width]` from 0 to 1."""
    values = np.asarray(image.convert("RGB"), np.float64) / 255
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def to_pil(image: torch.Tensor) -> Image.Image:
    """Return an image `[1, 3, height, width]` from 0 to 1 with 8 bits a channel."""
    values = (255 * image[0].permute(1, 2, 0)).round().to(torch.uint8)
    return Image.fromarray(values.numpy(force=True))

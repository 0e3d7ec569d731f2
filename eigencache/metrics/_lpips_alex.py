"""LPIPS with AlexNet: the distance of two images to a network that was trained on photographs.

Zhang et al. 2018, arXiv:1801.03924, version 0.1, by torchmetrics, which has the linear weights;
those of AlexNet are torchvision's and are fetched beforehand.
"""

import os
from pathlib import Path

import torch
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights


def scorer(folder: Path, device: str) -> "LpipsAlex":
    """Return LPIPS with AlexNet; `folder` is that of the model LPIPS-alex."""
    return LpipsAlex(folder, device)


class LpipsAlex:
    """The LPIPS of two images, 0 where they agree.

    Args:
        folder: has `checkpoints/` with AlexNet's weights under torchvision's name for them.
        device: where it runs.

    Raises:
        FileNotFoundError: the weights are not there; nothing is ever downloaded.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        weights = Path(folder) / "checkpoints" / AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights}: no such file; fetch the model LPIPS-alex, or take lpips_alex out of "
                "`metrics`"
            )
        torch.load(weights, map_location="cpu", weights_only=True)  # torchvision would run pickles
        before = torch.hub.get_dir()
        torch.hub.set_dir(folder)  # where torchvision looks for weights before it downloads any
        try:
            self.metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(device)
        finally:
            torch.hub.set_dir(before)
        self.device = device

    @torch.no_grad()
    def __call__(self, reference: torch.Tensor, image: torch.Tensor, prompt: str = "") -> float:
        pair = (one.to(self.device, torch.float32) for one in (image, reference))
        value = float(self.metric(*pair))
        self.metric.reset()
        return value

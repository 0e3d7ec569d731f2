"""ST-LPIPS with AlexNet: LPIPS that bears small shifts, with weights of its own.

Ghildyal and Liu, ECCV 2022, arXiv:2207.13686. The network is written anew here, since importing
their package `stlpips-pytorch` wants IPython and torchsummary; its weights and numbers are theirs.
It is not LPIPS, and its values are not to be compared with those of LPIPS.
"""

import os
import re
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

WEIGHTS = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
LEAST = 32  # pixels
# The layers below whose outputs are compared, and how many channels each has.
COMPARED = {2: 64, 6: 192, 10: 384, 12: 256, 14: 256}


def scorer(folder: Path, device: str) -> "StLpipsAlex":
    """Return ST-LPIPS with AlexNet; `folder` is that of the model ST-LPIPS-alex."""
    return StLpipsAlex(folder, device)


class StLpipsAlex:
    """The ST-LPIPS of two images, 0 where they agree.

    Args:
        folder: holds the weights, at their path in the package.
        device: where it runs.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.device = device
        self.network = _Network().eval()
        self.network.load_state_dict(_named(Path(folder) / WEIGHTS))
        self.network.to(device)

    @torch.no_grad()
    def __call__(self, reference: torch.Tensor, image: torch.Tensor, prompt: str = "") -> float:
        if min(image.shape[-2:]) < LEAST:
            raise ValueError(
                f"st_lpips_alex: an image has {image.shape[-1]}x{image.shape[-2]} pixels; it "
                f"needs {LEAST} or more each way. Take st_lpips_alex out of `metrics`"
            )
        pair = (one.to(self.device, torch.float32) for one in (reference, image))
        return float(self.network(*pair))


class _Blur(nn.Module):
    """Blur by a binomial filter of 3 pixels, reflecting 2 at the border, and halve the size."""

    filt: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=x.shape[1])


class _Network(nn.Module):
    """AlexNet's convolutions, with blurring in place of strides; and the linear heads."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU(),
                nn.MaxPool2d(3, 1), _Blur(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
                nn.MaxPool2d(3, 1), _Blur(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
                nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
                nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
            ]
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Conv2d(n, 1, 1, bias=False) for n in COMPARED.values())
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the distance `[1]` of two images from 0 to 1."""
        # What the package does by default: scale to -1..1, then shift and scale as version 0.1
        # of LPIPS does.
        x, y = ((2 * image - 1 - self.shift) / self.scale for image in (one, other))
        distance, heads = torch.zeros(1, device=x.device), iter(self.heads)
        for number, layer in enumerate(self.layers):
            x, y = layer(x), layer(y)
            if number in COMPARED:
                difference = (_direction(x) - _direction(y)) ** 2
                distance = distance + next(heads)(difference).mean()
        return distance


def _direction(features: torch.Tensor) -> torch.Tensor:
    """Return features with the channels of each pixel scaled to length 1."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _named(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights under the names that they have here."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    names = {"scaling_layer.": "", r"net\.slice\d\.": "layers.", r"lin(\d)\.model\.1": r"heads.\1"}
    renamed = {}
    for name, value in weights.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed

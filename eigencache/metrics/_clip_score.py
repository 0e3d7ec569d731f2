"""The CLIP score: how well an image matches its prompt, by an open_clip model."""

import os
from pathlib import Path

import open_clip
import torch

from eigencache.metrics.images import to_pil


def scorer(folder: Path, device: str) -> "ClipScore":
    """Return the CLIP score by the open_clip model in `folder`."""
    return ClipScore(folder, device)


class ClipScore:
    """100 times the cosine between the CLIP embeddings of an image and its prompt, in float64.

    Args:
        folder: an open_clip model: `open_clip_config.json`, weights, tokenizer.
        device: where it runs.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu") -> None:
        name = f"local-dir:{Path(folder)}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.model = self.model.to(device).double().eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = device
        self.texts: dict[str, torch.Tensor] = {}  # every run has an image of each prompt

    @torch.no_grad()
    def __call__(self, reference: torch.Tensor | None, image: torch.Tensor, prompt: str) -> float:
        pixels = self.preprocess(to_pil(image))[None].to(self.device).double()
        if prompt not in self.texts:
            tokens = self.tokenizer([prompt]).to(self.device)
            self.texts[prompt] = self.model.encode_text(tokens, normalize=True)
        seen = self.model.encode_image(pixels, normalize=True)
        return float(100 * (seen * self.texts[prompt]).sum())

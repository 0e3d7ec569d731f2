"""The CLIP score: how well an image goes with its prompt, by an open_clip model."""

import os
from pathlib import Path

import open_clip
import torch
from PIL import Image


class ClipScore:
    """100 times the cosine between the CLIP embeddings of an image and its prompt.

    Args:
        folder: an open_clip model: `open_clip_config.json`, weights, tokenizer.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
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

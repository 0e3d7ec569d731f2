"""Put a fine-tuned autoencoder into a pipeline directory.

The decoder is tuned after the flow model is trained, with the encoder frozen; this writes the flow
model's pipeline again with that autoencoder in it.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline

from eigencache.emoji import flow


def assemble(pipeline: Path, vae: Path, out: Path) -> None:
    """Write ``pipeline`` with the autoencoder ``vae`` to ``out``, in float16."""
    model = FluxPipeline.from_pretrained(
        pipeline, vae=AutoencoderKL.from_pretrained(vae), torch_dtype=torch.float32
    )
    flow.export(model, out)


def main() -> None:
    """Read the options and write the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, required=True, help="FluxPipeline directory")
    parser.add_argument("--vae", type=Path, required=True, help="AutoencoderKL directory")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    assemble(arguments.pipeline, arguments.vae, arguments.out)


if __name__ == "__main__":
    main()

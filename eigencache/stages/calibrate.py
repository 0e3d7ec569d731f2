"""Calibrate: run the model on calibration prompts and sum up the kernels of its features."""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from eigencache.kernel import Kernel
from eigencache.prompts import read_prompts
from eigencache.sampler import Settings, image_seed, load_encoded, sample
from eigencache.stages import LOW_MEMORY, run
from eigencache.stages.fetch import verified
from eigencache.taps import FEATURES, fingerprint, tapped, watching


@contextlib.contextmanager
def recording(transformer, tap: str, features: str) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the features of a tap's streams inside a `with` block.

    Yields:
        stream name to one float32 `[D]` tensor a call, compressed as `features` says
        (`eigencache.taps.FEATURES`), on the CPU.
    """
    compress = FEATURES[features]
    streams = tapped(transformer, tap).streams
    trajectory = {stream: [] for stream in streams}

    def keep(record, feature):
        record.append(compress(feature).cpu())

    with contextlib.ExitStack() as stack:
        for name, stream in streams.items():
            stack.enter_context(watching(stream, partial(keep, trajectory[name])))
        yield trajectory


class Kind(NamedTuple):
    """Which kernel: its tap, features and normalisation, and of how many runs (None: all)."""

    tap: str
    features: str
    normalisation: str
    runs: int | None = None

    @classmethod
    def of(cls, name: str) -> "Kind":
        """Read TAP.FEATURES.NORMALISATION or that and .RUNS."""
        tap, features, normalisation, *runs = name.split(".")
        return cls(tap, features, normalisation, *map(int, runs))


def calibrate(
    pipe, texts: Sequence[dict], settings: Settings, seed: int, kinds: list[Kind]
) -> list[Kernel]:
    """Return one kernel for each kind, from a full run of every prompt.

    Only one trajectory is held at a time, so memory does not grow with the number of prompts.

    Args:
        pipe: from `eigencache.sampler.load_encoded`.
        texts: with it, of calibration prompts; run `i` has the noise of `image_seed(seed, i)`.
        settings: how to call the pipeline.
        seed: of the calibration; it must differ from every evaluation seed.
        kinds: of the kernels.
    """
    kernels: list[Kernel | None] = [None] * len(kinds)
    source = {"seed": str(seed)}
    for index, text in enumerate(tqdm(texts, desc="calibrate", unit="run")):
        with contextlib.ExitStack() as stack:
            recorded = {
                what: stack.enter_context(recording(pipe.transformer, *what))
                for what in {kind[:2] for kind in kinds}
            }
            sample(pipe, text, settings, image_seed(seed, index))
        timesteps = pipe.scheduler.timesteps.double().cpu().numpy()
        for i, (tap, features, normalisation, runs) in enumerate(kinds):
            if runs is not None and index >= runs:
                continue
            trajectory = {
                stream: torch.stack(steps).numpy()
                for stream, steps in recorded[tap, features].items()
            }
            kernel = Kernel.of_run(
                trajectory, timesteps, normalisation, tap=tap, features=features,
                model=fingerprint(pipe.transformer), source=source,
            )  # fmt: skip
            kernels[i] = kernel if kernels[i] is None else kernels[i] + kernel
    return kernels


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    kinds = [Kind.of(Path(path).stem) for path in arguments.kernels]
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    for path, kind in zip(arguments.kernels, kinds, strict=True):
        if kind.runs is not None and kind.runs > len(prompts):
            raise ValueError(f"{path}: of {kind.runs} runs, there are {len(prompts)} prompts")
    model = verified(arguments.model)
    pipe, texts = load_encoded(model, prompts, settings, arguments.low_memory)
    kernels = calibrate(pipe, texts, settings, arguments.seed, kinds)
    for path, kernel in zip(arguments.kernels, kernels, strict=True):
        kernel.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("calibrate", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--num-prompts", type=int)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument(
        "--kernels", nargs="+", required=True,
        help="files to write, named TAP.FEATURES.NORMALISATION.safetensors",
    )  # fmt: skip
    run(main, parser, outputs=["kernels"], sources=["prompts"], models=["model"])

"""Collect: record what chosen streams of the network hold at every step of one full run."""

import argparse
import contextlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import torch

from eigencache.calibration.sampler import Settings, image_seed, load_encoded, sample
from eigencache.commands.prompts import read_prompts
from eigencache.plan import TAPS
from eigencache.runtime._taps import FEATURES, Stream, fingerprint, tapped, tensors, watching
from eigencache.trajectory import Trajectory
from reproduction.models.check import verified
from reproduction.stages import LOW_MEMORY, run

WHOLE = "whole"  # features as they are


def collect(
    pipe, prompt: str, text: dict, settings: Settings, seed: int, tap: str,
    patterns: Sequence[str] = ("*",), features: str = WHOLE,
) -> Trajectory:  # fmt: skip
    """Return the features of chosen streams over one full run.

    Args:
        pipe: from `sampler.load_encoded`, with `text`: the embeddings of the prompt.
        prompt: of the run.
        settings: how to call the pipeline.
        seed: of the noise, from `eigencache.calibration.sampler.image_seed`.
        tap: one of `eigencache.plan.TAPS`.
        patterns: shell patterns (`transformer_blocks.*.attn`) of the names of streams to record.
        features: what is kept of a feature: "whole", each tensor in its own shape less the batch,
            or one of `eigencache.runtime._taps.FEATURES`, one vector of all tensors.

    Raises:
        ValueError: a pattern matches no stream; the transformer does not have the tap, or is
            called more than once a step.
    """
    streams = chosen(tapped(pipe.transformer, tap).streams, patterns)
    records = {name: [] for name in streams}

    def keep(record: list, feature) -> None:
        parts = tensors(feature) if features == WHOLE else [FEATURES[features](feature)[None]]
        record.append([part[0].float().cpu().numpy() for part in parts])

    with contextlib.ExitStack() as stack:
        for name, stream in streams.items():
            stack.enter_context(watching(stream, partial(keep, records[name])))
        sample(pipe, text, settings, seed)
    found = {}
    for name, record in records.items():
        found |= _named(name, [np.stack(part) for part in zip(*record, strict=True)])
    timesteps, sigmas = (
        values.double().cpu().numpy()
        for values in (pipe.scheduler.timesteps, pipe.scheduler.sigmas)
    )
    return Trajectory(found, timesteps, sigmas, tap, prompt, seed, fingerprint(pipe.transformer))


def chosen(streams: dict[str, Stream], patterns: Sequence[str]) -> dict[str, Stream]:
    """Return the streams that match one of some shell patterns, in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in streams):
            raise ValueError(f"streams: {pattern!r} matches none of {list(streams)}")
    return {
        name: stream
        for name, stream in streams.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _named(name: str, parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a stream under names of their own."""
    if len(parts) == 1:
        return {name: parts[0]}
    suffixes = ("image", "text") if len(parts) == 2 else range(len(parts))
    return {f"{name}.{suffix}": part for suffix, part in zip(suffixes, parts, strict=True)}


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    settings = Settings(**json.loads(arguments.sampler))
    prompts = read_prompts(arguments.prompts)
    if arguments.index >= len(prompts):
        raise ValueError(f"{arguments.prompts}: no prompt {arguments.index} of {len(prompts)}")
    prompt, seed = prompts[arguments.index], image_seed(arguments.seed, arguments.index)
    pipe, texts = load_encoded(
        verified(arguments.model), [prompt], settings, arguments.low_memory
    )  # fmt: skip
    trajectory = collect(
        pipe, prompt, *texts, settings, seed, arguments.tap, arguments.streams, arguments.features
    )
    trajectory.save(arguments.trajectory)
    for name, feature in trajectory.features.items():
        print(f"{name}: {list(feature.shape)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("collect", description=__doc__)
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--index", type=int, default=0, help="of the prompt")
    parser.add_argument("--seed", type=int, required=True, help="of the calibration")
    parser.add_argument("--sampler", required=True, help="the settings, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)
    parser.add_argument("--tap", choices=TAPS, required=True)
    parser.add_argument("--streams", nargs="+", default=["*"], help="shell patterns of their names")
    parser.add_argument("--features", choices=[WHOLE, *FEATURES], default=WHOLE)
    parser.add_argument("--trajectory", required=True, help="safetensors file to write")
    run(main, parser, outputs=["trajectory"], sources=["prompts"], models=["model"])

"""Collect: record what chosen streams of the network hold at every step of one full run."""

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from eigencache.calibration._calls import called
from eigencache.calibration.recording import recording
from eigencache.calibration.sampler import image_seed
from eigencache.commands.prompts import opened, read_calls, text_of
from eigencache.plan import TAPS
from eigencache.runtime._taps import FEATURES, fingerprint, network_of, tensors
from reproduction.models.pipeline import add_pipeline, loaded
from reproduction.trajectory import Trajectory

WHOLE = "whole"  # features as they are


def collect(
    pipe, call: Mapping[str, Any], seed: int, tap: str, patterns: Sequence[str] = ("*",),
    features: str = WHOLE,
) -> Trajectory:  # fmt: skip
    """Return the features of chosen streams over one full run.

    Args:
        pipe: a pipeline of diffusers.
        call: the arguments that it is called with.
        seed: of the noise, from `eigencache.calibration.sampler.image_seed`.
        tap: one of `eigencache.plan.TAPS`.
        patterns: shell patterns (`transformer_blocks.*.attn`) of the names of streams to record.
        features: what is kept of a feature: "whole", each tensor in its own shape less the batch,
            or one of `eigencache.runtime._taps.FEATURES`, one vector of all tensors. Where the
            network is called several times per step, its features are joined along the first axis.

    Raises:
        ValueError: a pattern matches no stream; or the network does not have the tap.
    """
    records: dict[str, list[list[np.ndarray]]] = {}
    seen: set[str] = set()

    def keep(tap: str, name: str, feature) -> None:
        if len(recorder.moments) == 1:  # after the first step all names are known
            _check_patterns(patterns, sorted(seen))
        seen.add(name)
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            return
        parts = tensors(feature) if features == WHOLE else [FEATURES[features](feature)[None]]
        kept = [part[0].float().cpu().numpy() for part in parts]
        records.setdefault(name, []).append(kept)

    with recording(pipe, [tap], keep) as recorder:
        called(pipe, call, seed)
    _check_patterns(patterns, sorted(seen))
    found, count = {}, len(recorder.moments)
    for name, record in records.items():
        calls = len(record) // count
        parts = zip(*record, strict=True)
        found |= _named(name, [_joined(np.stack(part), calls) for part in parts])
    return Trajectory(
        found, recorder.timesteps, _sigmas(pipe.scheduler), tap, text_of(call), seed,
        fingerprint(network_of(pipe)),
    )  # fmt: skip


def _sigmas(scheduler) -> np.ndarray:
    """Return the noise levels of a scheduler, float64; empty where it has none."""
    sigmas = getattr(scheduler, "sigmas", ())
    return sigmas.double().cpu().numpy() if isinstance(sigmas, torch.Tensor) else np.empty(0)


def _joined(rows: np.ndarray, calls: int) -> np.ndarray:
    """Return features `[T * calls, N, ...]` as `[T, calls * N, ...]`."""
    return rows.reshape(len(rows) // calls, calls * rows.shape[1], *rows.shape[2:])


def _check_patterns(patterns: Sequence[str], streams: Sequence[str]) -> None:
    """Raise a ValueError if a shell pattern matches no stream."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in streams):
            raise ValueError(f"streams: {pattern!r} matches none of {list(streams)}")


def _named(name: str, parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a stream under names of their own."""
    if len(parts) == 1:
        return {name: parts[0]}
    suffixes = ("image", "text") if len(parts) == 2 else range(len(parts))
    return {f"{name}.{suffix}": part for suffix, part in zip(suffixes, parts, strict=True)}


def main(arguments: argparse.Namespace) -> None:
    calls = read_calls(arguments.prompts)
    if arguments.index >= len(calls):
        raise ValueError(f"{arguments.prompts}: no prompt {arguments.index} of {len(calls)}")
    call, seed = calls[arguments.index], image_seed(arguments.seed, arguments.index)
    pipe = loaded(arguments, [call])
    trajectory = collect(
        pipe, {**arguments.arguments, **opened(call)}, seed, arguments.tap, arguments.streams,
        arguments.features,
    )  # fmt: skip
    trajectory.save(arguments.trajectory)
    for name, feature in trajectory.features.items():
        print(f"{name}: {list(feature.shape)}")


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("collect", description=__doc__)
    add_pipeline(parser)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--index", type=int, default=0, help="of the prompt")
    parser.add_argument("--seed", type=int, required=True, help="of the calibration")
    parser.add_argument("--tap", choices=TAPS, required=True)
    parser.add_argument("--streams", nargs="+", default=["*"], help="shell patterns of their names")
    parser.add_argument("--features", choices=[WHOLE, *FEATURES], default=WHOLE)
    parser.add_argument("--trajectory", required=True, help="safetensors file to write")
    run(main, parser, outputs=["trajectory"], sources=["prompts"], models=["model"])

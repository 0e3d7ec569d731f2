"""How long planning takes, and what a skipped step costs beside a full one.

    python benchmarks/speed.py models/emoji-flux results/emoji-flux

Both arguments are results of the main job: a fetched model and an experiment's folder. Ratios are
of times measured in turn in one process, so that a busy machine disturbs both sides alike.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from eigencache.design import optimal_steps
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.predictors import Kriging
from eigencache.runtime import cached
from eigencache.sampler import Settings, encode, image_seed, load_pipeline, sample


def planning_seconds(kernel: Kernel) -> float:
    """Return the seconds to design every budget from 5 to 25, for a window of 3."""
    predictor = Kriging(window=3, jitter=1e-6, ordinary=True)
    start = time.perf_counter()
    optimal_steps(predictor, kernel.timesteps, kernel.matrix(), range(5, 26))
    return time.perf_counter() - start


def step_seconds(transformer: nn.Module, run) -> list[float]:
    """Return the seconds of every call of `transformer` while `run()` samples an image."""
    begun, seconds = [], []
    hooks = [
        transformer.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())),
        transformer.register_forward_hook(
            lambda *_: seconds.append(time.perf_counter() - begun[-1])
        ),
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seconds


def skipped_ratios(pipe, kernel: Kernel, settings: Settings, images: int) -> dict[str, float]:
    """Return the median cost of a skipped step over that of a full one, for each tap."""
    text, ratios = encode(pipe, "a red apple on a blue background", settings), {}
    methods = {"output": "EigenCache-design", "modules": "TaylorSeer"}
    for tap, name in methods.items():
        plan = METHODS[name].plan(9, kernel.timesteps, kernel)
        full, skipped = [], []
        for index in range(images + 1):
            with cached(pipe.transformer, plan):
                seconds = step_seconds(
                    pipe.transformer,
                    lambda index=index: sample(pipe, text, settings, image_seed(0, index)),
                )
            if index:  # the first image warms up
                full += [s for s, is_full in zip(seconds, plan.full, strict=True) if is_full]
                skipped += [s for s, is_full in zip(seconds, plan.full, strict=True) if not is_full]
        ratios[tap] = statistics.median(skipped) / statistics.median(full)
        print(f"tap {tap}: a skipped step costs {ratios[tap]:.4f} of a full one "
              f"({statistics.median(full) * 1e3:.2f} ms)")  # fmt: skip
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--sampler", default='{"height": 64, "width": 64, "dtype": "float32", '
                        '"max_sequence_length": 16}', help="settings, as JSON")  # fmt: skip
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kernel = Kernel.load(arguments.experiment / "kernels/output.full.second-moment.safetensors")
    print(f"planning every budget from 5 to 25, window 3: {planning_seconds(kernel):.2f} s")
    settings = Settings(**json.loads(arguments.sampler))
    pipe = load_pipeline(arguments.model, settings.dtype)
    skipped_ratios(pipe, kernel, settings, arguments.images)


if __name__ == "__main__":
    main()

"""What caching costs and saves on a transformer of FLUX.1-dev's size, without its weights.

    python -m benchmarks.gpu --compile             # on a GPU: data/benchmarks/gpu-{device}.csv
    python -m benchmarks.gpu --scale small         # a tiny one, on whatever there is

from the project's folder. The transformer has FLUX.1-dev's architecture and random weights (12e9
parameters in bfloat16, 4,096 image and 512 text tokens): nothing is downloaded, and it costs what
the real one costs. Images are sampled in 50 steps of FLUX's scheduler, uncached and with 7 full
steps: by EigenCache (six anchors, at the output), by TaylorSeer at every tap, and by diffusers' own
TaylorSeer hook at the tap "modules". Weights of plans are pretend where a kernel would be needed;
what a step costs does not depend on their values.
"""

import argparse
import contextlib
import gc
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn

from benchmarks.peers.compare import forget_peak, process_peak_mb
from benchmarks.peers.diffusers_hooks import MODULES, taylorseer, taylorseer_setting
from benchmarks.peers.diffusers_hooks import taylorseer_steps as their_steps
from eigencache.calibration.sampler import default_device
from eigencache.kernel import Kernel
from eigencache.methods import METHODS
from eigencache.plan import TAPS, Plan
from eigencache.runtime import cached
from eigencache.runtime._taps import blocks_of, tapped
from eigencache.runtime.stats import Clock
from reproduction.tables.tables import write_table

NUM_STEPS, FULL_STEPS = 50, 7
UNCACHED = "uncached"
# The configuration of FLUX.1-dev's transformer and of its scheduler.
TRANSFORMER = {"guidance_embeds": True}
SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}


@dataclass(frozen=True)
class Scale:
    """How large the transformer and its image are, and how often each case is measured."""

    side: int  # of the square image, in tokens
    text_tokens: int
    dtype: torch.dtype
    repeats: int
    config: dict = field(default_factory=dict)


SMALL = {
    "num_layers": 2, "num_single_layers": 3, "num_attention_heads": 4, "attention_head_dim": 32,
    "joint_attention_dim": 48, "pooled_projection_dim": 24, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
SCALES = {
    "full": Scale(64, 512, torch.bfloat16, 3, TRANSFORMER),
    "small": Scale(8, 16, torch.float32, 1, TRANSFORMER | SMALL),
}


def random_flux(config: dict, dtype: torch.dtype, device: str) -> FluxTransformer2DModel:
    """Return a transformer with random weights, the same at every call, made on the device.

    Matrices are normal with variance 1 / columns, scales of norms are one, biases zero: so that
    states keep about their size from block to block, and their products the power they take.
    """
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config).to(dtype)
    model.to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(float(name.endswith("weight")))
            else:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=draw)
    return model.eval()


class Denoising:
    """The denoising loop of FLUX's pipeline, over a transformer with random weights.

    Attributes:
        transformer: as in a pipeline.
        timesteps: float64 `[T]`, the scheduler's.
    """

    def __init__(self, scale: Scale, device: str):
        self.scale, self.device, self.clock = scale, device, Clock(device)
        self.transformer = random_flux(scale.config, scale.dtype, device)
        self.scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
        self._set_timesteps()
        self.timesteps = self.scheduler.timesteps.double().cpu().numpy()
        config, draw = self.transformer.config, torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw, device=device, dtype=scale.dtype)

        def positions(*shape: int) -> torch.Tensor:
            rows, columns = (part.flatten() for part in np.indices(shape))
            ids = np.stack([np.zeros_like(rows), rows, columns], 1)
            return torch.from_numpy(ids).to(device, scale.dtype)

        self.noise = normal(1, scale.side**2, config.in_channels)
        self.arguments = {
            "encoder_hidden_states": normal(1, scale.text_tokens, config.joint_attention_dim),
            "pooled_projections": normal(1, config.pooled_projection_dim),
            "guidance": torch.full([1], 3.5, device=device),
            "img_ids": positions(scale.side, scale.side),
            "txt_ids": torch.zeros_like(positions(1, scale.text_tokens)),
            "return_dict": False,
        }

    def _set_timesteps(self) -> None:
        sigmas, mu = np.linspace(1, 1 / NUM_STEPS, NUM_STEPS), calculate_shift(self.scale.side**2)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.device)
        self.scheduler.set_begin_index(0)

    @torch.no_grad()
    def run(self) -> tuple[list[float], float]:
        """Sample once; return the seconds of each step's call of the network, and of the loop."""
        self._set_timesteps()
        latents, marks = self.noise, []
        begin = self.clock.mark()
        for t in self.scheduler.timesteps:
            timestep = t.expand(1).to(latents.dtype) / 1000
            marks.append(self.clock.mark())
            with self.transformer.cache_context("cond"):
                velocity = self.transformer(latents, timestep=timestep, **self.arguments)[0]
            marks.append(self.clock.mark())
            latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
        end = self.clock.mark()
        self.clock.finish()
        self.transformer._reset_stateful_cache()  # as a pipeline does
        steps = [self.clock.between(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
        return steps, self.clock.between(begin, end)

    def forget_peak(self) -> None:
        """Start the high-water mark of memory anew."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats() if self.clock.cuda else forget_peak()

    def peak_mb(self) -> float:
        """Return the high-water mark in megabytes: of the GPU, or of the process on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e6 if self.clock.cuda else process_peak_mb()


@dataclass(frozen=True)
class Case:
    """One way to sample.

    Attributes:
        method: what its rows are called.
        tap: where it takes features.
        full_steps: those that compute the whole network.
        apply: `apply(denoising)` is a context manager, inside of which sampling goes by the method.
    """

    method: str
    tap: str
    full_steps: frozenset[int]
    apply: Callable[[Denoising], AbstractContextManager]


def cases(timesteps: np.ndarray) -> list[Case]:
    """Return what is measured, the uncached run first."""
    steps = np.arange(NUM_STEPS)
    likeness = np.exp(-(((steps[:, None] - steps) / 10) ** 2) / 2)
    kernel = Kernel({"output": likeness}, 1, timesteps, "output")
    six = METHODS["L2P"].plan(FULL_STEPS, timesteps, kernel, window=6, jitter=1e-3, ordinary=True)
    made = [Case(UNCACHED, "", frozenset(range(NUM_STEPS)), lambda _: nullcontext())]
    made += [_ours("EigenCache", six)]
    for order in (1, 2):
        plans = [
            METHODS["TaylorSeer"].plan(FULL_STEPS, timesteps, tap=t, order=order) for t in TAPS
        ]
        made += [_ours(f"TaylorSeer-{order}", plan) for plan in plans]
        setting = taylorseer_setting(NUM_STEPS, FULL_STEPS)
        apply = partial(taylorseer, MODULES | {"max_order": order}, **setting)
        full = frozenset(their_steps(NUM_STEPS, **setting))
        made += [Case(f"diffusers TaylorSeer-{order}", "modules", full, apply)]
    return made


def _ours(method: str, plan: Plan) -> Case:
    full = frozenset(plan.full_steps)
    return Case(method, plan.tap, full, lambda denoising: cached(denoising.transformer, plan))


def measured(denoising: Denoising, case: Case) -> dict[str, float]:
    """Return what a case takes: medians over its repeats, after a run that warms up."""
    full, skipped, loops = [], [], []
    with case.apply(denoising):
        denoising.run()
        denoising.forget_peak()
        for _ in range(denoising.scale.repeats):
            steps, seconds = denoising.run()
            loops.append(seconds)
            for step, taken in enumerate(steps):
                (full if step in case.full_steps else skipped).append(taken)
        peak = denoising.peak_mb()
    found = {"full_step_seconds": statistics.median(full), "loop_seconds": statistics.median(loops)}
    if skipped:
        found["skipped_step_seconds"] = statistics.median(skipped)
    return found | {"peak_memory_mb": peak}


def beside(found: dict[str, float], uncached: dict[str, float], full_steps: int) -> dict:
    """Return how a cached run compares with the uncached one.

    `share_of_ideal` is the speed-up over that of skipped steps which cost nothing at all.
    """
    speedup = uncached["loop_seconds"] / found["loop_seconds"]
    added = found["peak_memory_mb"] - uncached["peak_memory_mb"]
    return {
        "speedup": speedup,
        "share_of_ideal": speedup * full_steps / NUM_STEPS,
        "added_memory_mb": added,
        "added_memory_share": added / uncached["peak_memory_mb"],
    }


@contextlib.contextmanager
def compiled(modules: list[nn.Module], **options) -> Iterator[None]:
    """Compile the `forward` of modules in a `with` block, as `eigencache.runtime` says."""
    for module in modules:
        module.forward = torch.compile(module.forward, **options)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
        torch._dynamo.reset()


def measure(denoising: Denoising, **options) -> Iterator[tuple[Case, bool, dict[str, float]]]:
    """Yield each case, whether it was compiled, and what it takes.

    Args:
        denoising: what to measure on.
        options: of `torch.compile`; with none, nothing is compiled.
    """
    transformer = denoising.transformer
    blocks = [block for _, block in blocks_of(transformer)]
    streams = tapped(transformer, "modules").streams.values()
    modules = [module for stream in streams for module in stream.modules]
    parts = [(False, nullcontext(), lambda case: True)]
    if options:
        parts += [
            (True, compiled(blocks, **options), lambda case: case.tap != "modules"),
            (True, compiled(modules, **options), lambda case: case.tap == "modules"),
        ]
    uncached = {}
    for is_compiled, context, belongs in parts:
        with context:
            for case in filter(belongs, cases(denoising.timesteps)):
                found = measured(denoising, case)
                if case.method == UNCACHED:
                    uncached[is_compiled] = found
                else:
                    found |= beside(found, uncached[is_compiled], len(case.full_steps))
                yield case, is_compiled, found


def rows(denoising: Denoising, device_name: str, **options) -> Iterator[dict]:
    """Yield the rows of the table, one a quantity, and print each case as it is measured."""
    scale, transformer = denoising.scale, denoising.transformer
    shape = {
        "device": device_name,
        "dtype": str(scale.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in transformer.parameters()),
        "image_tokens": scale.side**2,
        "text_tokens": scale.text_tokens,
        "num_steps": NUM_STEPS,
    }
    for case, is_compiled, found in measure(denoising, **options):
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        state = "compiled" if is_compiled else "eager"
        print(f"{case.method} {case.tap} ({state}): {told}", flush=True)
        of = {
            "method": case.method,
            "tap": case.tap,
            "full_steps": len(case.full_steps),
            "compiled": is_compiled,
        }
        for name, value in found.items():
            yield shape | of | {"quantity": name, "value": value}


def targets(table: pd.DataFrame) -> list[str]:
    """Return a line for each target: whether it is met, what was measured, what was aimed at."""
    values = table.set_index(["compiled", "method", "tap", "quantity"])["value"].sort_index()
    lines = []
    for is_compiled in sorted(set(table["compiled"])):
        state = "compiled" if is_compiled else "eager"

        def check(text: str, value: float, bound: float, met: bool, state=state) -> None:
            lines.append(
                f"{'met' if met else 'MISSED'} ({state}): {text}: {value:.4g}, target {bound:.4g}"
            )

        output = values[is_compiled, "EigenCache", "output"]
        share, added = output["share_of_ideal"], output["added_memory_share"]
        check("output tap, share of the ideal speed-up, at least", share, 0.97, share >= 0.97)
        check("output tap, added memory as a share, at most", added, 0.01, added <= 0.01)
        for order in (1, 2):
            ours = values[is_compiled, f"TaylorSeer-{order}", "modules"]
            theirs = values[is_compiled, f"diffusers TaylorSeer-{order}", "modules"]
            for name in ("skipped_step_seconds", "loop_seconds", "added_memory_mb"):
                text = f"modules tap, order {order}, {name}, at most diffusers'"
                check(text, ours[name], theirs[name], ours[name] <= theirs[name])
    return lines


def main(arguments: argparse.Namespace) -> None:
    device = default_device()
    if arguments.scale == "full" and device != "cuda":
        raise SystemExit("--scale full is 12e9 parameters and needs a GPU; try --scale small")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    options = {"fullgraph": True} if arguments.compile else {}
    denoising = Denoising(SCALES[arguments.scale], device)
    table = pd.DataFrame(rows(denoising, name, **options))
    wide = table.pivot_table(
        "value", ["compiled", "method", "tap", "full_steps"], "quantity", sort=False
    )
    print(wide.to_string(float_format="{:.4g}".format), *targets(table), sep="\n")
    path = arguments.out
    if path is None and arguments.scale == "full":
        path = Path(f"data/benchmarks/gpu-{re.sub('[^a-z0-9]+', '-', name.lower())}.csv")
    if path:
        write_table(table, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("gpu", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--compile", action="store_true", help="measure with torch.compile too")
    parser.add_argument(
        "--out", type=Path, help="CSV to write; by default data/benchmarks/gpu-{device}.csv of "
        "--scale full, and none of --scale small",
    )  # fmt: skip
    main(parser.parse_args())

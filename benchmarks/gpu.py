"""What caching costs and saves on a transformer of FLUX.1-dev's size, without its weights.

    python -m benchmarks.gpu --minutes 4           # on a GPU: data/benchmarks/gpu-{device}.csv
    python -m benchmarks.gpu --from 6              # what one run had no time for, in another:
                                                   # data/benchmarks/gpu-{device}-from-6.csv
    python -m benchmarks.gpu --scale small         # a tiny model, on whatever there is

from the project's folder. The pipeline is diffusers' own; its transformer has FLUX.1-dev's
architecture and random weights (12e9 parameters in bfloat16, made on the device), so nothing is
downloaded and a step costs what the real one costs. Images are sampled in 50 steps. What is
measured, the most important first:

    1  1024 px, eager: no cache; forecasts from six anchors at the tap "output", 5 to 20 full steps
    2  where a step's time goes, and whether anything waits for the device (by torch's profiler)
    3  TaylorSeer of order 1 at the other taps, 7 full steps
    4  the caches of diffusers and of cache-dit, 7 full steps
    5  1024 px again, with every block compiled
    6  512 px, eager and with every block compiled, and where a step's time goes in each
    7  calibration, and from that what a user waits for a plan
    8  1024 px with the whole transformer compiled
    9  Qwen-Image's architecture at 1024 px
   10  Wan 2.2 TI2V-5B's architecture: 33 frames of 1280 x 704 px, two calls a step for guidance

Every number is in the CSV file as soon as it is known. Beside it are a trace of the profiler
(`.trace.json.gz`) and a summary of it (`.profile.json`). A case that fails has a row with the
quantity "error"; a case for which the minutes do not suffice is left out, and has a row that says
so. The minutes count from when the packages are imported.

A step's seconds are those between the ends of two steps, by events that are recorded on the device;
nothing waits for the device while images are sampled. Weights of plans are pretend where a kernel
would be needed: what a step costs does not depend on their values.
"""

import argparse
import contextlib
import csv
import gc
import gzip
import itertools
import json
import logging
import math
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pandas as pd
import torch
from diffusers import (
    AutoencoderKL,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import eigencache
from benchmarks.memory import forget_peak, process_peak_mb
from benchmarks.models import WAN_5B
from benchmarks.peers import diffusers_hooks

NUM_STEPS, FULL_STEPS, ANCHORS = 50, 7, 6
PROMPT = "a lighthouse in a storm"
# Of the network, for one prompt: a full run, and two with few full steps.
CALIBRATION_CALLS = NUM_STEPS + 5 + 9
OTHER_TAPS = ("hidden", "blocks", "delta", "modules")
UNCACHED, AGAIN, OURS = "uncached", "uncached, again", "EigenCache"
EAGER, BLOCKS, WHOLE = "no", "blocks", "whole"  # what is compiled
# The configuration of FLUX.1-dev's transformer and of its scheduler.
TRANSFORMER = {"guidance_embeds": True}
SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
# The scheduler of Wan 2.2 TI2V-5B, and how many pixels a side of its latents stands for.
WAN_SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
WAN_SPATIAL = 16
# Peak rates of dense bfloat16 products, in FLOP/s, by the vendor's datasheets.
H100_PEAK, A100_PEAK = 989e12, 312e12


@dataclass(frozen=True)
class Scale:
    """How large the transformers and what they sample are, and how often each case is measured.

    Attributes:
        pixels: sides of the square images, that of most cases first.
        video: height, width and frames of Wan's video.
        text_tokens: of a prompt.
        dtype: of weights and features.
        repeats: runs of a case with 7 full steps; cases with more full steps have fewer.
        budgets: full steps at the tap "output".
        flux: configuration of FLUX's transformer.
        qwen: of Qwen-Image's.
        wan: of Wan's.
    """

    pixels: tuple[int, int]
    video: tuple[int, int, int]
    text_tokens: int
    dtype: torch.dtype
    repeats: int
    budgets: tuple[int, ...]
    flux: dict = field(default_factory=dict)
    qwen: dict = field(default_factory=dict)
    wan: dict = field(default_factory=dict)


SMALL_FLUX = {
    "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32,
    "joint_attention_dim": 48, "pooled_projection_dim": 24, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
SMALL_QWEN = {
    "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32,
    "joint_attention_dim": 48, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
SMALL_WAN = {
    "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 256,
    "text_dim": 48, "freq_dim": 32,
}  # fmt: skip
SCALES = {
    "full": Scale(
        (1024, 512), (704, 1280, 33), 512, torch.bfloat16, 3, (7, 5, 9, 13, 20),
        TRANSFORMER, {}, WAN_5B,
    ),
    "small": Scale(
        (128, 64), (128, 192, 9), 16, torch.float32, 1, (7, 20),
        TRANSFORMER | SMALL_FLUX, SMALL_QWEN, WAN_5B | SMALL_WAN,
    ),
}  # fmt: skip


def random_transformer(kind: type, config: dict, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a transformer with random weights, the same at every call, made on the device.

    Matrices are normal with variance 1 / columns, scales of norms are one, biases zero: so states
    keep about their size from block to block, and their products take the power they would take.
    Weights that diffusers keeps in float32 when it loads such a model are float32 here too.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(**config)
    finally:
        torch.set_default_dtype(before)
    draw = torch.Generator(device).manual_seed(0)
    precise = set(model._keep_in_fp32_modules or ())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if precise.intersection(name.split(".")):
                weight.data = weight.data.float()
            if weight.ndim == 1:
                weight.fill_(float(name.endswith("weight")))
            else:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=draw)
    return model.eval()


def flux_pipeline(scale: Scale, device: str) -> FluxPipeline:
    """Return FLUX's pipeline with a tiny VAE, tiny text encoders and emoji-flux's tokenizers."""
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(4,) * 4, norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    transformer = random_transformer(FluxTransformer2DModel, scale.flux, scale.dtype, device)
    model = Path(__file__).parent.parent / "data/emoji-flux"
    names = ("tokenizer", "tokenizer_2")
    short, long = (AutoTokenizer.from_pretrained(model / n, local_files_only=True) for n in names)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(short), hidden_size=transformer.config.pooled_projection_dim,
            intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, bos_token_id=0,
            eos_token_id=1,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(long), d_model=transformer.config.joint_attention_dim, d_kv=16, d_ff=64,
            num_layers=1, num_heads=4,
        )
    )  # fmt: skip
    vae, clip, t5 = (part.to(device, scale.dtype).eval() for part in (vae, clip, t5))
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipe = FluxPipeline(scheduler, vae, clip, short, t5, long, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_pipeline(scale: Scale, device: str) -> QwenImagePipeline:
    """Return Qwen-Image's pipeline with its transformer alone."""
    transformer = random_transformer(QwenImageTransformer2DModel, scale.qwen, scale.dtype, device)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipe = QwenImagePipeline(scheduler, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_pipeline(scale: Scale, device: str) -> WanPipeline:
    """Return Wan 2.2 TI2V-5B's pipeline with its transformer alone."""
    transformer = random_transformer(WanTransformer3DModel, scale.wan, scale.dtype, device)
    scheduler = UniPCMultistepScheduler(**WAN_SCHEDULER)
    pipe = WanPipeline(None, None, None, scheduler, transformer, expand_timesteps=True)
    pipe.vae_scale_factor_spatial = WAN_SPATIAL  # without a VAE it takes Wan 2.1's
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Mark:
    """A moment: of the device's stream where that is a GPU's, else of the clock."""

    def __init__(self, device: str) -> None:
        if device == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.event, self.time = None, time.perf_counter()

    def until(self, later: "Mark") -> float:
        """Return the seconds from this moment to a later one, which the device has passed."""
        if self.event:
            return self.event.elapsed_time(later.event) / 1e3
        return later.time - self.time


class Loop(NamedTuple):
    """The seconds of every step of one run, and of all together."""

    steps: list[float]
    seconds: float


class Denoising:
    """A pipeline that samples one image or video of one size, and is timed.

    Args:
        pipe: of diffusers.
        size: height and width in pixels, and of a video the number of frames.
        scale: of the transformer.
        device: "cuda" or "cpu", where the transformer is.

    Attributes:
        size: by the names of the pipeline's arguments.
        tokens: of the image or video in the transformer.
        timesteps: number of steps to float64 `[T]`, the scheduler's, of those sampled so far.
    """

    def __init__(self, pipe: Any, size: tuple[int, ...], scale: Scale, device: str):
        self.pipe, self.scale, self.device = pipe, scale, device
        self.size = dict(zip(("height", "width", "num_frames"), size, strict=False))
        self.timesteps: dict[int, np.ndarray] = {}
        config, draw = pipe.transformer.config, torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw, device=device, dtype=scale.dtype)

        is_video = isinstance(pipe, WanPipeline)
        width = config.text_dim if is_video else config.joint_attention_dim
        texts = (1, scale.text_tokens, width)
        self.arguments = {"output_type": "latent"} | self.size
        # All three patch 2 x 2 latents.
        patch = 2 * (pipe.vae_scale_factor_spatial if is_video else pipe.vae_scale_factor)
        self.tokens = (size[0] // patch) * (size[1] // patch)
        if is_video:
            self.tokens *= (size[2] - 1) // pipe.vae_scale_factor_temporal + 1
            self.arguments |= {
                "prompt_embeds": normal(*texts), "negative_prompt_embeds": normal(*texts),
                "guidance_scale": 5.0,
            }  # fmt: skip
        elif isinstance(pipe, FluxPipeline):
            self.arguments |= {"prompt": PROMPT, "max_sequence_length": scale.text_tokens}
        else:
            ones = torch.ones(1, scale.text_tokens, device=device, dtype=torch.int64)
            self.arguments |= {
                "prompt_embeds": normal(*texts),
                "prompt_embeds_mask": ones,
                "true_cfg_scale": 1.0,
            }

    @property
    def shape(self) -> dict:
        """The columns of the table that describe the model and what it samples."""
        return {
            "dtype": str(self.scale.dtype).removeprefix("torch."),
            "model": type(self.pipe.transformer).__name__,
            "image_tokens": self.tokens,
            "text_tokens": self.scale.text_tokens,
        }

    def run(self, num_steps: int = NUM_STEPS, noted: bool = False, on_host: bool = False) -> Loop:
        """Sample once.

        Args:
            num_steps: of the sampler.
            noted: whether to note the end of each step for the profiler (`STEP_ENDS`).
            on_host: whether to take the times of the host, which is ahead of the device.
        """
        marks: list[Mark] = []

        def mark() -> None:
            if noted:
                with record_function(STEP_ENDS):
                    pass
            marks.append(Mark("cpu" if on_host else self.device))

        def step_ends(pipe, step, timestep, tensors) -> dict:
            mark()
            return {}

        def loop_begins(module, arguments) -> None:
            if not marks:
                mark()

        # The first step is computed in full whatever the plan, and so calls the transformer.
        begins = self.pipe.transformer.register_forward_pre_hook(loop_begins)
        try:
            self.pipe(
                **self.arguments, num_inference_steps=num_steps, callback_on_step_end=step_ends,
                callback_on_step_end_tensor_inputs=[],
                generator=torch.Generator(self.device).manual_seed(2),
            )  # fmt: skip
        finally:
            begins.remove()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.timesteps[num_steps] = self.pipe.scheduler.timesteps.double().cpu().numpy()
        steps = [a.until(b) for a, b in itertools.pairwise(marks)]
        return Loop(steps, marks[0].until(marks[-1]))

    def forget_peak(self) -> None:
        """Start the high-water mark of memory anew."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats() if self.device == "cuda" else forget_peak()

    def peak_mb(self) -> float:
        """Return the high-water mark in megabytes: of the GPU, or of the process on a CPU."""
        on_gpu = self.device == "cuda"
        return torch.cuda.max_memory_allocated() / 1e6 if on_gpu else process_peak_mb()


@dataclass(frozen=True)
class Case:
    """One way to sample.

    Attributes:
        method: what its rows are called.
        tap: where it takes features.
        full: the steps that compute the whole network.
        apply: `apply(pipe)` is a context manager, inside of which sampling goes by the method.
        repeats: how many runs are measured.
        warm: whether a run that is not measured comes before.
    """

    method: str
    tap: str
    full: frozenset[int]
    apply: Callable[[Any], AbstractContextManager]
    repeats: int = 1
    warm: bool = True

    def expected(self, step: float) -> float:
        """Return the seconds that it should take if a full step takes `step`, a skipped one 3 %."""
        return (self.repeats + self.warm) * step * (len(self.full) + 0.03 * NUM_STEPS)


def six_anchors(num_full: int, timesteps: np.ndarray) -> eigencache.Plan:
    """Return a plan as EigenCache makes them: evenly many full steps, forecasts from up to six.

    Its weights are pretend, and are all the same: the mean of the last full steps.
    """
    steps = len(timesteps)
    full = np.zeros(steps, bool)
    full[np.arange(num_full) * steps // num_full] = True
    weights = np.zeros((steps, steps))
    for step in np.flatnonzero(~full):
        anchors = np.flatnonzero(full[:step])[-ANCHORS:]
        weights[step, anchors] = 1 / len(anchors)
    return eigencache.Plan(full, weights, timesteps, "output")


def planned(method: str, plan: eigencache.Plan, repeats: int, warm: bool = True) -> Case:
    """Return the case that samples by a plan."""
    full = frozenset(np.flatnonzero(plan.full).tolist())
    return Case(method, plan.tap, full, lambda pipe: eigencache.cached(pipe, plan), repeats, warm)


def uncached(method: str = UNCACHED) -> Case:
    """Return the case without a cache."""
    return Case(method, "", frozenset(range(NUM_STEPS)), lambda pipe: nullcontext())


def output_cases(timesteps: np.ndarray, repeats: int, budgets: tuple[int, ...]) -> list[Case]:
    """Return EigenCache at the output; the more full steps, the fewer repeats.

    Only the first needs to warm up: the others compute the same on tensors of the same sizes.
    """
    plans = [six_anchors(budget, timesteps) for budget in budgets]
    fewer = [max(1, round(repeats * min(1, FULL_STEPS / budget))) for budget in budgets]
    return [planned(OURS, plan, n, plan is plans[0]) for plan, n in zip(plans, fewer, strict=True)]


def tap_cases(timesteps: np.ndarray) -> list[Case]:
    """Return TaylorSeer of order 1 at the taps that need more than the output."""
    plan = eigencache.METHODS["TaylorSeer"].plan
    plans = [plan(FULL_STEPS, timesteps, tap=tap, order=1) for tap in OTHER_TAPS]
    return [planned("TaylorSeer-1", made, 1) for made in plans]


def peer_cases() -> list[Case]:
    """Return the caches of diffusers, at about as many full steps."""
    setting = diffusers_hooks.taylorseer_setting(NUM_STEPS, FULL_STEPS)
    full = frozenset(diffusers_hooks.taylorseer_steps(NUM_STEPS, **setting))
    options = {"modules": diffusers_hooks.MODULES, "output": {"use_lite_mode": True}}
    return [
        Case("diffusers FirstBlockCache", "blocks", full, partial(first_block, full)),
        *(
            Case(
                "diffusers TaylorSeer-1", tap, full,
                partial(diffusers_hooks.taylorseer, option, **setting),
            )
            for tap, option in options.items()
        ),
    ]  # fmt: skip


@contextlib.contextmanager
def first_block(full: frozenset[int], pipe: Any) -> Iterator[None]:
    """Enable diffusers' FirstBlockCache, which decides as always and is then overruled.

    With random weights no threshold gives a stated number of full steps. Its decision, which waits
    for the device, is part of what it costs; so it is made, and not heeded.
    """
    with diffusers_hooks.enabled(pipe, FirstBlockCacheConfig(threshold=0.1)):
        first = pipe.transformer.transformer_blocks[0]
        hook = first._diffusers_hook.get_hook("fbc_leader_block_hook")
        decide, calls = hook._should_compute_remaining_blocks, itertools.count()

        def decision(residual: torch.Tensor) -> bool:
            decide(residual)
            return next(calls) % NUM_STEPS in full

        hook._should_compute_remaining_blocks = decision
        yield


def cache_dit_case(timesteps: np.ndarray) -> Case:
    """Return cache-dit's DBCache with TaylorSeer, at the full steps of our own interval.

    Raises:
        ImportError: cache-dit is not installed.
    """
    from benchmarks.peers import cache_dit

    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)  # otherwise ten lines each time it is enabled
    plan = eigencache.METHODS["TaylorSeer"].plan(FULL_STEPS, timesteps, order=1)
    steps = np.flatnonzero(plan.full)
    every = int(steps[-1] - steps[-2])

    @contextlib.contextmanager
    def apply(pipe):
        # Once disabled, it leaves the blocks defined in another order.
        transformer = pipe.transformer
        order = list(transformer._modules)
        try:
            with cache_dit.masked("TaylorSeer-1", NUM_STEPS, pipe, every):
                yield
        finally:
            modules = transformer._modules
            for name in [n for n in order if n in modules]:
                modules[name] = modules.pop(name)

    return Case("cache-dit DBCache + TaylorSeer-1", "blocks", frozenset(steps.tolist()), apply)


def measured(denoising: Denoising, case: Case) -> dict[str, float]:
    """Return what a case takes: medians over its repeats."""
    full, skipped, loops = [], [], []  # seconds
    with case.apply(denoising.pipe):
        if case.warm:
            denoising.run(3 if case.method in (UNCACHED, AGAIN) else NUM_STEPS)
        denoising.forget_peak()
        for _ in range(case.repeats):
            steps, seconds = denoising.run()
            loops.append(seconds)
            for step, taken in enumerate(steps):
                (full if step in case.full else skipped).append(taken)
        peak = denoising.peak_mb()
    found = {"full_step_seconds": statistics.median(full), "loop_seconds": statistics.median(loops)}
    if skipped:
        found["skipped_step_seconds"] = statistics.median(skipped)
        found["skipped_step_mean_seconds"] = statistics.fmean(skipped)
        found["share_of_loop_in_full_steps"] = sum(full) / sum(loops)
    return found | {"peak_memory_mb": peak}


def beside(found: dict[str, float], reference: dict[str, float], full_steps: int) -> dict:
    """Return how a cached run compares with the uncached one.

    `share_of_ideal` is the speed-up over that of skipped steps which cost nothing at all.
    """
    speedup = reference["loop_seconds"] / found["loop_seconds"]
    added = found["peak_memory_mb"] - reference["peak_memory_mb"]
    return {
        "speedup": speedup,
        "share_of_ideal": speedup * full_steps / NUM_STEPS,
        "added_memory_mb": added,
        "added_memory_share": added / reference["peak_memory_mb"],
    }


@contextlib.contextmanager
def compiled(transformer: nn.Module, what: str, backend: str = "inductor") -> Iterator[None]:
    """Compile a transformer's blocks (`BLOCKS`) or its whole `forward` in a `with` block."""
    options: dict = {"fullgraph": True, "backend": backend}
    if what == BLOCKS:
        transformer.compile_repeated_blocks(**options)
    elif what == WHOLE:
        transformer.forward = torch.compile(transformer.forward, **options)
    try:
        yield
    finally:
        if what == WHOLE:
            del transformer.forward
        for module in transformer.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()


# The profiler.

STEP_ENDS = "benchmark: a step ends"
PROFILED_STEPS = 6
PROFILED_FULL = (0, 1, 3)
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::item", "aten::_local_scalar_dense")
# Whose Python code a frame is: of the cache (diffusers' hooks are part of it), or that which the
# cache stands for or calls. Frames of others count for their caller.
CLASSES = {
    "cache": re.compile(r"(^|/)(eigencache|diffusers/hooks)/[\w/]*\.py\("),
    "network": re.compile(r"(^|/)diffusers/models/transformers/\w+\.py\("),
    "pipeline": re.compile(r"(^|/)diffusers/pipelines/[\w/]+\.py\("),
    "scheduler": re.compile(r"(^|/)diffusers/schedulers/\w+\.py\("),
    "benchmark": re.compile(r"(^|/)benchmarks/gpu\.py\("),
}


def profiled_plan(timesteps: np.ndarray) -> eigencache.Plan:
    """Return a plan of a few steps, every second of them forecast from all full ones before."""
    steps = len(timesteps)
    full = np.isin(np.arange(steps), PROFILED_FULL)
    weights = np.where(full[None] & ~full[:, None] & np.tri(steps, k=-1, dtype=bool), 1.0, 0.0)
    weights /= np.maximum(weights.sum(1, keepdims=True), 1)
    return eigencache.Plan(full, weights, timesteps, "output")


def trace_of(denoising: Denoising, stack: bool, keep: Path | None = None) -> list[dict]:
    """Return the events of the profiler's trace of one short run.

    Args:
        denoising: what to sample with, as it is.
        stack: whether Python functions are traced too, which makes all of them slower.
        keep: where to write the trace, compressed.
    """
    activities = [ProfilerActivity.CPU]
    if denoising.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, with_stack=stack) as profiler:
        denoising.run(PROFILED_STEPS, noted=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        text = path.read_bytes()
    if keep:
        keep.write_bytes(gzip.compress(text, 6))
    return json.loads(text)["traceEvents"]


def windows_of(events: list[dict]) -> list[tuple[float, float]]:
    """Return when each step began and ended on the host, in microseconds."""
    notes = notes_of(events)
    return [(a["ts"] + a["dur"], b["ts"]) for a, b in itertools.pairwise(notes)]


def notes_of(events: list[dict]) -> list[dict]:
    """Return what was noted where the loop begins and where steps end, in order.

    On a GPU each is in the trace twice, once as the device saw it.
    """
    notes = [e for e in events if e.get("name") == STEP_ENDS and e.get("cat") == "user_annotation"]
    return sorted(notes, key=lambda e: e["ts"])


def by_step(events: list[dict]) -> list[dict[str, float]]:
    """Return, of each step of a trace: seconds on the host, what the device did, what waited."""
    windows = windows_of(events)
    found = [
        {"host_seconds": (end - begin) / 1e6, "device_busy_seconds": 0.0, "launches": 0,
         "reads": 0, "waits": 0, "copies_to_host": 0, "copies_to_device": 0}
        for begin, end in windows
    ]  # fmt: skip

    def step_of(event: dict) -> dict | None:
        for window, step in zip(windows, found, strict=True):
            if window[0] <= event["ts"] < window[1]:
                return step
        return None

    launched = {}  # of what the device did, the step that asked for it
    for event in events:
        category, step = event.get("cat"), step_of(event) if "ts" in event else None
        if step is None:
            continue
        if category == "cpu_op":
            step["reads"] += event["name"] in READS
        elif category in ("cuda_runtime", "cuda_driver"):
            step["waits"] += event["name"] in WAITS
            launched[event.get("args", {}).get("correlation")] = step
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            step = launched.get(event.get("args", {}).get("correlation"))
            if step is not None:
                step["device_busy_seconds"] += event["dur"] / 1e6
                step["launches"] += 1
                step["copies_to_host"] += "DtoH" in event["name"]
                step["copies_to_device"] += "HtoD" in event["name"]
    return found


def python_by_step(events: list[dict]) -> list[dict[str, float]]:
    """Return, of each step of a trace with Python functions, the seconds of each of `CLASSES`.

    Each function's own time counts for the class of the nearest function around it that has one,
    "pipeline" if there is none; calls of the driver, which wait where its queue is full, are
    apart (`driver`, and `driver of cache` where the cache calls it).
    """
    windows = windows_of(events)
    thread = notes_of(events)[0]["tid"]
    kinds = ("python_function", "cuda_runtime", "cuda_driver")
    calls = [e for e in events if e.get("cat") in kinds and e["tid"] == thread]
    calls.sort(key=lambda e: (e["ts"], -e["dur"]))
    found: list[dict[str, float]] = [{} for _ in windows]

    def add(begin: float, end: float, name: str) -> None:
        for window, step in zip(windows, found, strict=True):
            shared = min(end, window[1]) - max(begin, window[0])
            if shared > 0:
                step[name] = step.get(name, 0.0) + shared / 1e6

    stack: list[tuple[float, str]] = []  # of the functions around: when it ends, its class
    now = -math.inf
    for call in [*calls, {"ts": math.inf, "dur": 0.0, "cat": "", "name": ""}]:
        while stack and stack[-1][0] <= call["ts"]:
            end, name = stack.pop()
            add(now, end, name)
            now = max(now, end)
        if stack:
            add(now, call["ts"], stack[-1][1])
        now = call["ts"]
        name = around = stack[-1][1] if stack else "pipeline"
        if call["cat"] != "python_function":
            name = "driver of cache" if around == "cache" else "driver"
        else:
            name = next((k for k, v in CLASSES.items() if v.search(call["name"])), around)
        stack.append((call["ts"] + call["dur"], name))
    return found


def profiled(denoising: Denoising, cached: bool, keep: Path | None = None) -> dict[str, dict]:
    """Return, of full and of skipped steps, means of what the profiler tells (`by_step`).

    `cache_cpu_seconds` and the other `_cpu_seconds` are of a run in which Python functions are
    traced, and so are longer than they are without.
    """
    if PROFILED_STEPS not in denoising.timesteps:
        denoising.run(PROFILED_STEPS)
    plan = profiled_plan(denoising.timesteps[PROFILED_STEPS])
    with eigencache.cached(denoising.pipe, plan) if cached else nullcontext():
        denoising.run(PROFILED_STEPS)
        steps = by_step(trace_of(denoising, False, keep))
        python = python_by_step(trace_of(denoising, True))
    names = [*CLASSES, "driver", "driver of cache"]
    for step, own in zip(steps, python, strict=True):
        step |= {f"{n.replace(' ', '_')}_cpu_seconds": own.get(n, 0.0) for n in names}
    kinds: dict[str, list[dict]] = {"full": [], "skipped": []}
    for index, step in enumerate(steps):
        kinds["full" if not cached or index in PROFILED_FULL else "skipped"].append(step)
    return {
        kind: {name: statistics.fmean(step[name] for step in of_kind) for name in of_kind[0]}
        for kind, of_kind in kinds.items()
        if of_kind
    }


def host_costs(denoising: Denoising) -> dict[str, float]:
    """Return what the host spends on a step besides the network, with the cache and without.

    For this the transformer's `forward` returns the same tensor at every call, so what is left is
    the pipeline's loop, the scheduler's step and the cache. Every second step is full.
    """
    transformer = denoising.pipe.transformer
    outputs: list[Any] = []
    hook = transformer.register_forward_hook(lambda module, arguments, out: outputs.append(out))
    denoising.run(1)
    hook.remove()
    full = np.arange(NUM_STEPS) % 2 == 0
    weights = six_anchors(NUM_STEPS // 2, denoising.timesteps[NUM_STEPS]).weights
    plan = eigencache.Plan(full, weights, denoising.timesteps[NUM_STEPS], "output")
    seconds: dict[str, list[float]] = {"uncached": [], "full": [], "skipped": []}
    transformer.forward = lambda *_, **__: outputs[0]
    try:
        for _ in range(5):
            seconds["uncached"] += denoising.run(on_host=True).steps
        with eigencache.cached(denoising.pipe, plan):
            for _ in range(5):
                for is_full, taken in zip(full, denoising.run(on_host=True).steps, strict=True):
                    seconds["full" if is_full else "skipped"].append(taken)
    finally:
        del transformer.forward
    medians = {name: statistics.median(of_kind) for name, of_kind in seconds.items()}
    return {
        "uncached_host_step_seconds": medians["uncached"],
        "full_host_step_seconds": medians["full"],
        "skipped_host_step_seconds": medians["skipped"],
        "added_host_seconds": medians["full"] - medians["uncached"],
    }


# The table.

COLUMNS = (
    "device", "driver", "torch", "diffusers", "dtype", "model", "image_tokens", "text_tokens",
    "num_steps", "method", "tap", "full_steps", "compiled", "quantity", "value", "unit", "note",
)  # fmt: skip


class Table:
    """A CSV file that holds every row as soon as it is known.

    Args:
        path: of the file; None writes none.
        device: "cuda" or "cpu", of which the rows are.
    """

    def __init__(self, path: Path | None, device: str) -> None:
        self.made: list[dict] = []
        self.common = {
            "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
            "driver": driver_version() if device == "cuda" else "",
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        }
        self.file = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("w", newline="", encoding="utf-8")
            self._write(COLUMNS)

    def add(self, of: dict, quantity: str, value: float, note: str = "") -> None:
        """Add a row: what it is of, a quantity (which tells its unit), its value and a remark."""
        row = dict.fromkeys(COLUMNS, "") | self.common | of
        row |= {"quantity": quantity, "value": value, "unit": unit_of(quantity), "note": note}
        self.made.append(row)
        if self.file:
            # A missing value is an empty cell.
            self._write("" if row[name] != row[name] else row[name] for name in COLUMNS)

    def _write(self, cells) -> None:
        csv.writer(self.file, lineterminator="\n").writerow(cells)
        self.file.flush()

    def frame(self) -> pd.DataFrame:
        """Return all rows so far."""
        return pd.DataFrame(self.made, columns=list(COLUMNS))


def unit_of(quantity: str) -> str:
    """Return the unit that the name of a quantity tells; "1" for what has none."""
    units = {"seconds": "s", "mb": "MB", "db": "dB"}
    return units.get(quantity.rsplit("_", 1)[-1], "1")


def driver_version() -> str:
    """Return the version of the GPU's driver, or nothing if nvidia-smi does not say."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    return ""


def cpu_name() -> str:
    """Return "cpu" and which."""
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


class Session:
    """What is measured so far, and how much time is left.

    Args:
        table: where the rows go.
        minutes: after which no case begins that is not expected to end by then.
    """

    def __init__(self, table: Table, minutes: float) -> None:
        self.table, self.seconds, self.begun = table, 60 * minutes, time.monotonic()

    def left(self) -> float:
        """Return the seconds left."""
        return self.begun + self.seconds - time.monotonic()

    def attempt(
        self, of: dict, expected: float, do: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Do a case if there is time, and return its quantities, which then are in the table.

        Returns:
            Nothing if the case fails or is left out. A row says which, and why.
        """
        label = " ".join(str(of[k]) for k in ("method", "tap", "full_steps") if of.get(k, "") != "")
        state = f"{of.get('image_tokens', '')} tokens, compiled: {of.get('compiled', '')}"
        title = f"[{self.seconds - self.left():5.1f} s] {label} ({state})"
        if expected > self.left():
            note = f"no time: {expected:.0f} s expected, {max(0, self.left()):.0f} s left"
            print(f"{title}: {note}", flush=True)
            self.table.add(of, "left_out", math.nan, note)
            return {}
        try:
            found = do()
        except Exception as error:  # whatever it is, other cases can do without this one
            text = str(error).strip().split("\n")[0]
            print(f"{title}: FAILED: {type(error).__name__}: {text}", flush=True)
            self.table.add(of, "error", math.nan, f"{type(error).__name__}: {text}")
            del error
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return {}
        for quantity, value in found.items():
            self.table.add(of, quantity, value)
        print(f"{title}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)
        return found


class Part:
    """The cases of one model at one size in one state of compilation.

    Attributes:
        reference: what the uncached run takes; empty if that failed, and all else is left out.
    """

    def __init__(self, session: Session, denoising: Denoising, state: str = EAGER) -> None:
        self.session, self.denoising, self.state = session, denoising, state
        self.reference: dict[str, float] = {}
        self.found: list[tuple[dict, Case, dict]] = []

    def of(self, case: Case | None = None, **columns: object) -> dict:
        """Return the columns that describe a case."""
        of = self.denoising.shape | {"num_steps": NUM_STEPS, "compiled": self.state}
        if case:
            of |= {"method": case.method, "tap": case.tap, "full_steps": len(case.full)}
        return of | columns

    def baseline(self, expected_step: float, more: float = 0.0, case: Case | None = None) -> None:
        """Measure the run without a cache, with which all others are compared."""
        case = case or uncached()
        expected = (NUM_STEPS + 3) * expected_step + more

        def do() -> dict[str, float]:
            begun = time.monotonic()
            self.denoising.run(3)
            warm = time.monotonic() - begun
            return measured(self.denoising, case) | {"first_three_steps_seconds": warm}

        self.reference = self.session.attempt(self.of(case), expected, do)

    @property
    def step(self) -> float:
        """The seconds of a full step."""
        return self.reference["full_step_seconds"]

    def cases(self, cases: list[Case]) -> None:
        """Measure cases and compare them with the uncached run."""
        for case in cases if self.reference else []:
            of = self.of(case)

            def do(case=case) -> dict[str, float]:
                found = measured(self.denoising, case)
                return found | beside(found, self.reference, len(case.full))

            found = self.session.attempt(of, case.expected(self.step), do)
            if found:
                self.found.append((of, case, found))

    def again(self) -> None:
        """Measure the uncached run again, and compare with the mean of both."""
        if not self.reference:
            return
        case, first = uncached(AGAIN), self.reference
        second = self.session.attempt(
            self.of(case), 53 * self.step, lambda: measured(self.denoising, case)
        )
        if second:
            mean = (first["loop_seconds"] + second["loop_seconds"]) / 2
            for of, case, found in self.found:
                share = mean / found["loop_seconds"] * len(case.full) / NUM_STEPS
                self.session.table.add(of, "share_of_ideal_by_both", share)


def profile_part(part: Part, out: Path | None) -> dict:
    """Profile a few steps with and without the cache; return and tabulate what is found."""
    summary: dict[str, dict] = {}
    if not part.reference:
        return summary
    for cached in (False, True):
        of = part.of(
            method=OURS if cached else UNCACHED, tap="output" if cached else "",
            full_steps=len(PROFILED_FULL) if cached else PROFILED_STEPS, num_steps=PROFILED_STEPS,
        )  # fmt: skip
        keep = out.with_suffix(".trace.json.gz") if out and cached else None

        def do(cached=cached, keep=keep) -> dict[str, float]:
            found = profiled(part.denoising, cached, keep)
            summary["cached" if cached else "uncached"] = found
            return {f"{kind}_{k}": v for kind, of_kind in found.items() for k, v in of_kind.items()}

        part.session.attempt(of, 40 * part.step + 8, do)
    host = part.of(method=OURS, tap="output")
    costs = part.session.attempt(host, part.step + 2, lambda: host_costs(part.denoising))
    if costs:
        share = costs["added_host_seconds"] / part.step
        part.session.table.add(host, "added_host_share", share)
    if "cached" in summary and "uncached" in summary:
        plain = summary["uncached"]["full"]
        of = part.of(method=OURS, tap="output", num_steps=PROFILED_STEPS)
        waits = ("reads", "waits", "copies_to_host")
        for kind, of_kind in summary["cached"].items():
            more = max(of_kind[name] - plain[name] for name in waits)
            part.session.table.add(of, f"{kind}_added_waits", more)
    return summary


def write_summary(summary: dict, out: Path | None) -> None:
    """Write what the profiler told, beside the table."""
    if out:
        out.with_suffix(".profile.json").write_text(json.dumps(summary, indent=1) + "\n")


def calibration(part: Part) -> None:
    """Time a calibration on one prompt, and work out what more prompts would take."""
    denoising, session = part.denoising, part.session
    if not part.reference:
        return
    pipe, timesteps = denoising.pipe, denoising.timesteps[NUM_STEPS]
    of = part.of(method="EigenCache-design", tap="output", full_steps=FULL_STEPS)

    def fit() -> dict[str, float]:
        steps = np.arange(NUM_STEPS)
        likeness = np.exp(-(((steps[:, None] - steps) / 10) ** 2) / 2)
        kernel = eigencache.Kernel({"output": likeness}, 1, timesteps, "output")
        begun = time.perf_counter()
        eigencache.METHODS["EigenCache-design"].plan(FULL_STEPS, timesteps, kernel)
        return {"fit_seconds": time.perf_counter() - begun}

    def calibrate() -> dict[str, float]:
        begun, ended, computed = [], [], []
        marks = [
            # The transformer itself is called at skipped steps too, and does nothing.
            pipe.transformer.x_embedder.register_forward_hook(lambda *_: computed.append(None)),
            pipe.transformer.register_forward_pre_hook(
                lambda *_: begun.append(Mark(denoising.device))
            ),
            pipe.transformer.register_forward_hook(lambda *_: ended.append(Mark(denoising.device))),
        ]
        try:
            by_prompts = eigencache.calibrate  # imports what it needs
            start = time.perf_counter()
            by_prompts(
                pipe, [PROMPT], FULL_STEPS, num_inference_steps=NUM_STEPS,
                max_sequence_length=denoising.scale.text_tokens, **denoising.size,
            )  # fmt: skip
            taken = time.perf_counter() - start
        finally:
            for mark in marks:
                mark.remove()
        network = sum(a.until(b) for a, b in zip(begun, ended, strict=True))
        return {
            "calibrate_1_prompt_seconds": taken,
            "network_seconds": network,
            "between_calls_seconds": taken - network,
            "network_calls": float(len(computed)),
        }

    fitted = session.attempt(of, 5, fit)
    found = session.attempt(of, (CALIBRATION_CALLS + 5) * part.step + 5, calibrate)
    if not (fitted and found):
        return
    network, fitting = found["network_seconds"], fitted["fit_seconds"]
    between = max(0.0, found["between_calls_seconds"] - fitting)
    ratio = H100_PEAK / A100_PEAK
    for prompts in (8, 32):
        sums = {f"wait_{prompts}_prompts_seconds": (network, "")}
        if denoising.device == "cuda":
            sums[f"a100_estimate_{prompts}_prompts_seconds"] = (
                network * ratio,
                f"; an estimate: the network's {network:.3f} s times {ratio:.2f}, the ratio of "
                "peak rates of an H100 and an A100",
            )
        for quantity, (calls, note) in sums.items():
            session.table.add(
                of, quantity, prompts * (calls + between) + fitting,
                f"{prompts} x ({calls:.3f} s of network + {between:.3f} s between) + "
                f"{fitting:.3f} s to fit{note}",
            )  # fmt: skip


def measure(
    session: Session, scale: Scale, device: str, backend: str, out: Path | None, first: int = 1
) -> None:
    """Measure everything there is time for, in the order of the module's text, from ``first``."""
    pipe = flux_pipeline(scale, device)
    large, little = (Denoising(pipe, (side, side), scale, device) for side in scale.pixels)
    guess = 0.25 if device == "cuda" else 0.01  # seconds of a full step, before any is measured
    building = 30.0 if backend == "inductor" and device == "cuda" else 5.0  # to compile the blocks

    part = Part(session, large)
    part.baseline(guess)
    if not part.reference:
        return
    timesteps, repeats = large.timesteps[NUM_STEPS], scale.repeats
    summary: dict[str, dict] = {}
    if first <= 1:
        part.cases(output_cases(timesteps, repeats, scale.budgets))
        part.again()
    if first <= 2:
        summary[f"{scale.pixels[0]} px"] = profile_part(part, out)
        write_summary(summary, out)
    if first <= 3:
        part.cases(tap_cases(timesteps))
    if first <= 4:
        part.cases(peer_cases())
        try:
            part.cases([cache_dit_case(timesteps)])
        except ImportError as error:
            note = f"cache-dit cannot be imported: {str(error).splitlines()[0]}"
            print(note)
            session.table.add(part.of(method="cache-dit DBCache + TaylorSeer-1"), "left_out",
                              math.nan, note)  # fmt: skip

    def in_state(denoising: Denoising, what: str, seconds: float, budgets: tuple) -> None:
        """Measure the output tap with something compiled."""
        made = Part(session, denoising, what)
        with compiled(pipe.transformer, what, backend):
            made.baseline(part.step * denoising.tokens / large.tokens, seconds)
            if made.reference:
                made.cases(output_cases(denoising.timesteps[NUM_STEPS], repeats, budgets))
                made.again()
                if denoising is little:
                    summary[f"{scale.pixels[1]} px, {what} compiled"] = profile_part(made, None)
                    write_summary(summary, out)

    if first <= 5:
        in_state(large, BLOCKS, building, scale.budgets)
    if first <= 6:
        fewer = Part(session, little)
        fewer.baseline(part.step * little.tokens / large.tokens)
        if fewer.reference:
            fewer.cases(output_cases(little.timesteps[NUM_STEPS], repeats, (FULL_STEPS,)))
            fewer.again()
            summary[f"{scale.pixels[1]} px"] = profile_part(fewer, None)
            write_summary(summary, out)
        in_state(little, BLOCKS, building, (FULL_STEPS,))
    if first <= 7:
        calibration(part)
    if first <= 8:
        in_state(large, WHOLE, 4 * building, (FULL_STEPS,))

    step = part.step
    large.pipe = little.pipe = part = pipe = fewer = None  # its memory is needed
    for number, other in enumerate(others(scale), 9):
        if first <= number:
            measure_other(session, other, scale, device, step * other.factor)


class Other(NamedTuple):
    """Another architecture than FLUX.1-dev's, which is measured at the output alone.

    Attributes:
        transformer: its class.
        pipeline: `pipeline(scale, device)` makes its pipeline.
        size: of what it samples (`Denoising`).
        factor: of its full step's seconds to those of FLUX.1-dev's, a guess by their operations.
        repeats: runs of the cached case.
    """

    transformer: type
    pipeline: Callable[[Scale, str], Any]
    size: tuple[int, ...]
    factor: float
    repeats: int


def others(scale: Scale) -> list[Other]:
    """Return the architectures of the module's text from 9 on."""
    side = scale.pixels[0]
    return [
        Other(QwenImageTransformer2DModel, qwen_pipeline, (side, side), 1.1, scale.repeats),
        Other(WanTransformer3DModel, wan_pipeline, scale.video, 3.0, 1),
    ]


def measure_other(
    session: Session, other: Other, scale: Scale, device: str, seconds: float
) -> None:
    """Measure another architecture, whose full step is expected to take ``seconds``."""
    of = {"model": other.transformer.__name__}
    if session.left() < (NUM_STEPS + 3) * seconds:  # not worth the making
        note = "no time"
        session.table.add(of, "left_out", math.nan, note)
        print(f"{short(of['model'])}: {note}")
        return
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    made: list[Denoising] = []

    def make() -> dict[str, float]:
        begun = time.perf_counter()
        made.append(Denoising(other.pipeline(scale, device), other.size, scale, device))
        return {"making_seconds": time.perf_counter() - begun}

    if session.attempt(of, 5, make):
        part = Part(session, made[0])
        part.baseline(seconds)
        if part.reference:
            steps = made[0].timesteps[NUM_STEPS]
            part.cases(output_cases(steps, other.repeats, (FULL_STEPS,)))


def targets(table: pd.DataFrame) -> list[str]:
    """Return a line for each target: whether it is met, what was measured, what was aimed at."""
    lines = []
    table = table[~table["quantity"].isin(["error", "left_out"])]

    def check(text: str, value: float, bound: float, met: bool) -> None:
        lines.append(f"{'met' if met else 'MISSED'}: {text}: {value:.4g}, target {bound:.4g}")

    keys = ["model", "image_tokens", "compiled", "method", "tap", "full_steps"]
    for key, rows in table.groupby(keys, sort=False, dropna=False):
        model, tokens, state, method, tap, full_steps = key
        values = rows.set_index("quantity")["value"]
        name = f"{short(model)}, {tokens} tokens, compiled: {state}"
        if (method, tap) == (OURS, "output") and "share_of_ideal" in values:
            share = values.get("share_of_ideal_by_both", values["share_of_ideal"])
            text = f"{name}: output tap, {full_steps} full"
            check(f"{text}, share of the ideal speed-up, at least", share, 0.98, share >= 0.98)
            added = values["added_memory_share"]
            check(f"{text}, added memory as a share, at most", added, 0.01, added <= 0.01)
        if "added_host_share" in values:
            share = values["added_host_share"]
            text = f"{name}: our code on a full step, a share of it, below"
            check(text, share, 0.001, share < 0.001)
        for kind in ("full", "skipped"):
            if f"{kind}_added_waits" in values:
                waits = values[f"{kind}_added_waits"]
                text = f"{name}: times that a {kind} step waits for the device, at most"
                check(text, waits, 0, waits <= 0)
    named = table.groupby(["compiled", "method", "tap", "quantity"])["value"].first()
    for quantity in ("skipped_step_seconds", "added_memory_mb"):
        methods = ("TaylorSeer-1", "diffusers TaylorSeer-1")
        keys = [(EAGER, method, "modules", quantity) for method in methods]
        if all(key in named for key in keys):
            ours, theirs = (named[key] for key in keys)
            text = f"modules tap, order 1, {quantity}, at most diffusers'"
            check(text, ours, theirs, ours <= theirs)
    return lines


def printed(table: pd.DataFrame) -> str:
    """Return the table of loops, a case a line."""
    shown = {  # quantity to its name here, and what it is multiplied by
        "full_step_seconds": ("full ms", 1e3),
        "skipped_step_seconds": ("skipped ms", 1e3),
        "loop_seconds": ("loop s", 1),
        "speedup": ("speed-up", 1),
        "share_of_ideal": ("share", 1),
        "share_of_ideal_by_both": ("by both", 1),
        "peak_memory_mb": ("peak MB", 1),
        "added_memory_mb": ("added MB", 1),
    }
    keys = ["model", "image_tokens", "compiled", "method", "tap", "full_steps"]
    rows = table[table["quantity"].isin(list(shown)) & (table["num_steps"] == NUM_STEPS)]
    if rows.empty:
        return "nothing was measured"
    rows = rows.assign(model=rows["model"].map(short), value=rows["value"].astype(float))
    wide = rows.pivot_table("value", keys, "quantity", sort=False)
    wide = pd.DataFrame({n: wide[q] * by for q, (n, by) in shown.items() if q in wide})
    return wide.reset_index().to_string(index=False, na_rep="", float_format="{:.5g}".format)


def short(model: str) -> str:
    """Return the name of a transformer's class without its ending."""
    return re.sub("Transformer[23]DModel", "", model)


def main(arguments: argparse.Namespace) -> None:
    if arguments.show:
        table = pd.read_csv(arguments.show).fillna({"tap": "", "method": "", "compiled": ""})
        table = table.astype({"full_steps": "Int64", "image_tokens": "Int64"})
        print(printed(table), *targets(table), sep="\n")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.scale == "full" and device != "cuda":
        raise SystemExit("--scale full is 12e9 parameters and needs a GPU; try --scale small")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    out = arguments.out
    if out is None and arguments.scale == "full":
        stem = re.sub("[^a-z0-9]+", "-", name.lower())
        begun = f"-from-{arguments.first}" if arguments.first > 1 else ""  # another run's rows stay
        out = Path(f"data/benchmarks/gpu-{stem}{begun}.csv")
    table = Table(out, device)
    session = Session(table, arguments.minutes)
    scale = SCALES[arguments.scale]
    measure(session, scale, device, arguments.backend, out, arguments.first)
    print(printed(table.frame()), *targets(table.frame()), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--minutes", type=float, default=10, help="after which no case begins")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N",
                        choices=range(1, 11), help="begin with number N of the list, 1 to 10; "
                        "the uncached run of 1 is measured all the same")  # fmt: skip
    parser.add_argument("--show", type=Path, help="measure nothing, show such a CSV")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument(
        "--out", type=Path, help="CSV to write; by default data/benchmarks/gpu-{device}.csv of "
        "--scale full (gpu-{device}-from-N.csv with --from), and none of --scale small",
    )  # fmt: skip
    main(parser.parse_args())

"""Whether the embedded model gives the same images on a GPU as on a CPU, and what else must hold.

    python -m benchmarks.gpu_workflow --out data/benchmarks/gpu-workflow.csv

from the project's folder; it takes well under a minute. What is measured, on data/emoji-flux:

    calibrate       the plans that the GPU and the CPU calibrate on the same prompts
    devices         images of the same plan, prompts and noise on the GPU and on the CPU, in
                    float32 and bfloat16: the largest difference of latents and images, the PSNR.
                    Beside it, the PSNR to the full run on each device
    anchor_device   whether images are the same to the last bit if anchors are kept in main memory
    low_memory      whether they are if diffusers' model offloading moves the models
    lease           whether two commands that ask for one GPU ever run at the same time

Without a GPU only the CPU's rows are made, and those of leases if there is something to lease.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline

import eigencache
from benchmarks.gpu import Table

MODEL = Path("data/emoji-flux")
PROMPTS = Path("data/prompts/emoji-evaluation.txt")
CALIBRATION = Path("data/prompts/emoji-calibration.txt")
NUM_STEPS, FULL_STEPS, TAYLORSEER_STEPS, IMAGES = 50, 9, 7, 4
CALL = {"height": 128, "width": 128, "max_sequence_length": 24}


def pipeline(dtype: torch.dtype, device: str, low_memory: bool = False) -> Any:
    """Return the embedded model on a device."""
    pipe = DiffusionPipeline.from_pretrained(
        MODEL, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    if low_memory:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def lines(path: Path, count: int) -> list[str]:
    """Return the first prompts of a file."""
    return [line for line in path.read_text().splitlines() if line.strip()][:count]


def sampled(
    pipe: Any, plan: eigencache.Plan | None, anchor_device: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return latents and images of a few prompts, float64, images from 0 to 1."""
    kept: list[torch.Tensor] = []

    def keep(pipe, step, timestep, tensors) -> dict:
        if step == NUM_STEPS - 1:
            kept.append(tensors["latents"])
        return {}

    options = {} if anchor_device is None else {"anchor_device": anchor_device}
    with eigencache.cached(pipe, plan, **options) if plan else contextlib.nullcontext():
        images = pipe(
            lines(PROMPTS, IMAGES), num_inference_steps=NUM_STEPS, output_type="pt", **CALL,
            generator=[torch.Generator("cpu").manual_seed(i) for i in range(IMAGES)],
            callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents"],
        ).images  # fmt: skip
    return tuple(tensor.double().cpu().numpy() for tensor in (kept[0], images))


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR of 8-bit images in dB, a mean over images; inf where one is the same."""
    a, b = (np.round(np.clip(x, 0, 1) * 255) for x in (images, reference))
    errors = ((a - b) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean([10 * math.log10(255**2 / e) if e else math.inf for e in errors]))


def beside(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Return how far apart two results of `sampled` are."""
    size = float(np.sqrt((b[0] ** 2).mean()))
    return {
        "largest_difference_of_latents": float(abs(a[0] - b[0]).max()),
        "rms_of_latents": size,
        "relative_error_of_latents": float(np.sqrt(((a[0] - b[0]) ** 2).mean())) / size,
        "largest_difference_of_images": float(abs(a[1] - b[1]).max()),
        "psnr_db": psnr(a[1], b[1]),
        "equal_to_the_last_bit": float(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])),
    }


def plans_of(pipe: Any) -> dict[str, eigencache.Plan]:
    """Return a plan by optimal design at the output, calibrated, and TaylorSeer's at modules."""
    prompts = lines(CALIBRATION, 2)
    common = {"num_inference_steps": NUM_STEPS, **CALL}
    return {
        "EigenCache-design": eigencache.calibrate(pipe, prompts, FULL_STEPS, **common),
        "TaylorSeer-1": eigencache.calibrate(
            pipe, prompts, TAYLORSEER_STEPS, method="TaylorSeer", **common
        ),
    }


def compare_devices(table: Table, device: str) -> None:
    """Compare the devices, and on the GPU what must not change an image."""
    plans: dict[str, eigencache.Plan] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        pipes = {where: pipeline(dtype, where) for where in dict.fromkeys(("cpu", device))}
        if not plans:
            plans = plans_of(pipes["cpu"])
            if device != "cpu":
                others = plans_of(pipes[device])
                for method, plan in plans.items():
                    other = others[method]
                    same = plan.full_steps == other.full_steps
                    of = row(name, method, plan, "calibrate")
                    add(table, of, {
                        "same_full_steps": float(same),
                        "largest_difference_of_weights": float(
                            abs(plan.weights - other.weights).max()
                        ) if same else math.nan,
                    })  # fmt: skip
        full = {where: sampled(pipe, None) for where, pipe in pipes.items()}
        if device != "cpu":
            of = row(name, "full", None, "devices")
            add(table, of, beside(full[device], full["cpu"]))
            again = sampled(pipes[device], None)
            add(table, of | {"method": "full, again"}, beside(again, full[device]))
        for method, plan in plans.items():
            made = {where: sampled(pipe, plan) for where, pipe in pipes.items()}
            for where in made:
                found = psnr(made[where][1], full[where][1])
                of = row(name, method, plan, "devices")
                add(table, of, {f"psnr_to_the_full_run_on_{where}_db": found})
            if device != "cpu":
                add(table, row(name, method, plan, "devices"), beside(made[device], made["cpu"]))
            kept = sampled(pipes[device], plan, anchor_device="cpu")
            add(table, row(name, method, plan, "anchor_device"), beside(kept, made[device]))
            if device != "cpu":
                moved = sampled(pipeline(dtype, device, low_memory=True), plan)
                add(table, row(name, method, plan, "low_memory"), beside(moved, made[device]))


@functools.cache
def image_tokens() -> int:
    """Return how many tokens FLUX's pipeline makes of an image: one of 2 x 2 latent pixels."""
    levels = AutoencoderKL.load_config(MODEL / "vae", local_files_only=True)["block_out_channels"]
    return CALL["height"] * CALL["width"] // (2 * 2 ** (len(levels) - 1)) ** 2


def row(dtype: str, method: str, plan: eigencache.Plan | None, what: str) -> dict:
    """Return the columns that say what is compared, by which plan."""
    return {
        "dtype": dtype, "model": MODEL.name, "image_tokens": image_tokens(),
        "text_tokens": CALL["max_sequence_length"],
        "num_steps": NUM_STEPS, "method": f"{what}: {method}", "tap": plan.tap if plan else "",
        "full_steps": len(plan.full_steps) if plan else NUM_STEPS, "compiled": "no",
    }  # fmt: skip


def add(table: Table, of: dict, found: dict[str, float]) -> None:
    """Add quantities to the table and print them."""
    for quantity, value in found.items():
        table.add(of, quantity, value)
    told = ", ".join(f"{k} {v:.4g}" for k, v in found.items())
    print(f"{of['dtype']} {of['method']} {of['tap']}: {told}", flush=True)


# It asks the driver itself, since torch takes seconds to import.
HOLDER = """
import ctypes, json, os, sys, time
begun, seen, count, context = time.time(), os.environ, ctypes.c_int(), ctypes.c_void_p()
try:
    cuda = ctypes.CDLL("libcuda.so.1")
    codes = [cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(count)),
             cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)]
except OSError:
    codes = [-1]
time.sleep(1)
made = {"begun": begun, "ended": time.time(), "cuda": not any(codes) and count.value == 1,
        "visible": seen.get("CUDA_VISIBLE_DEVICES"), "decided": seen["EIGENCACHE_DEVICE"]}
open(sys.argv[1], "w").write(json.dumps(made))
"""


def leases(table: Table) -> None:
    """Have two commands ask for one GPU at once, and see whether they overlap.

    Raises:
        RuntimeError: a command fails.
    """
    path = os.pathsep.join(filter(None, ["workflow", os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "EIGENCACHE_DEVICE": "gpu", "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": path
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.json" for i in range(2)]
        python = sys.executable
        command = [python, "-m", "reproduction.devices.lease", "1", "--", python, "-c", HOLDER]
        options = {"env": environment, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen([*command, str(file)], **options) for file in files]
        said = [process.communicate(timeout=60)[1].strip() for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError("a leased command failed: " + " | ".join(said))
        first, second = sorted((json.loads(f.read_text()) for f in files), key=lambda m: m["begun"])
    print("\n".join(said))
    of = row("", "two commands, one GPU", None, "lease") | {"full_steps": "", "num_steps": ""}
    add(table, of, {
        "gap_seconds": second["begun"] - first["ended"],
        "overlap": float(second["begun"] < first["ended"]),
        "each_used_one_gpu": float(first["cuda"] and second["cuda"]),
        "same_device": float(first["visible"] == second["visible"]),
        "decided_for_the_gpu": float(first["decided"] == second["decided"] == "gpu"),
    })  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table(arguments.out, device)
    parts: list[tuple[str, Callable[[], None]]] = [
        ("devices", lambda: compare_devices(table, device))
    ]
    if device == "cuda":
        parts.insert(0, ("lease", lambda: leases(table)))
    failed = []
    for name, do in parts:
        try:
            do()
        except Exception as error:  # the other part can do without it
            failed.append(name)
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name} FAILED: {text}", flush=True)
            table.add({"model": MODEL.name, "method": name}, "error", math.nan, text)
    print(f"{time.monotonic() - begun:.0f} s")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("gpu_workflow", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="CSV to write; by default none")
    main(parser.parse_args())

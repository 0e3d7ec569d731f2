"""Sample an image of every prompt, by a plan, by a method or without a cache.

Image I is of prompt I of the file, counted from 0, and is written as OUT/0000I.png; the frames of a
video are OUT/0000I/FRAME.png. Its noise depends on the seed and I alone, so that runs with
different plans can be compared image by image; they are the images that the workflow makes with
that seed. OUT/records.jsonl has one line for each image: its prompt, seed, seconds, plan, hash ...
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from eigencache._checks import agrees, span
from eigencache._files import replacing
from eigencache._frames import hash_of_frames, write_frames
from eigencache.built_in import Budget
from eigencache.commands._common import (
    add_call,
    add_method,
    add_model,
    call_arguments,
    calls_from,
    check_folder,
    dtype_of,
    loaded,
    parsed_options,
)
from eigencache.commands.prompts import described, text_of
from eigencache.kernel import Kernel
from eigencache.methods import method_of
from eigencache.plan import Plan, PlanError
from eigencache.sharing import load_plan

EXAMPLES = """\
examples:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt \\
      --plan plan.safetensors --out images

  by a built-in plan, for which nothing is calibrated:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --full-steps 9 \\
      --out images

  by a method that needs no kernel, on two GPUs:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --steps 50 \\
      --method HiCache --interval 5 --option order=2 --option scale=0.6 --gpus 0,1 --out images

  the full run, to compare with:
  eigencache sample --model data/emoji-flux --prompts data/prompts/emoji-evaluation.txt \\
      --num-prompts 8 --height 64 --width 64 --max-sequence-length 16 --out full
"""
RECORDS = "records.jsonl"
STEPS = "num_inference_steps"
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the plan or method, the seed, and where to write images."""
    add_model(parser)
    parser.add_argument(
        "--plan", metavar="PLAN",
        help="file of `eigencache plan` or the workflow, or user/repo of the Hugging Face hub; by "
        "default every step is computed in full",
    )  # fmt: skip
    method = parser.add_argument_group("a method in place of a plan")
    add_method(method, default=None)  # type: ignore[arg-type]
    method.add_argument(
        "--full-steps",
        type=int,
        metavar="N",
        help="how many steps are computed in full; without a method or kernel, by a built-in plan",
    )
    method.add_argument(
        "--interval", type=int, metavar="N", help="or: one full step in every N, after the first"
    )
    method.add_argument(
        "--kernel", type=Path, metavar="FILE",
        help="of `eigencache calibrate`, for methods that need one; of any number of steps",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=2026, help="seed of the images' noise; by default %(default)s"
    )
    parser.add_argument(
        "--anchor-device", metavar="DEVICE",
        help="where the cache keeps features, such as cpu; by default where they are made",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", metavar="LIST",
        help="devices to share the prompts among, as CUDA_VISIBLE_DEVICES names them: 0,1; or "
        "cpu. The images are the same as on one device",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="folder to write")
    parser.add_argument(
        "--resume", action="store_true", help="make only the images of this run that OUT lacks"
    )
    parser.add_argument("--shard", help=argparse.SUPPRESS)  # INDEX/COUNT, of a process of --gpus
    add_call(
        parser, "the arguments of the plan or kernel apply; where it has none, the pipeline's own "
        "defaults",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the images, and say what the cache did."""
    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}")
    plan = load_plan(arguments.plan) if arguments.plan else None
    kernel = Kernel.load(arguments.kernel) if arguments.kernel else None
    request = _request(arguments, plan, kernel)
    calls, origin = calls_from(arguments), plan or kernel
    source, shared = origin.source if origin else {}, call_arguments(arguments, origin)
    if plan:
        shared.setdefault(STEPS, len(plan))
        _check_arguments_of(plan, shared, arguments.plan)
    about = {
        "model": arguments.model,
        "pipeline": arguments.pipeline,
        "arguments": shared,
        "dtype": arguments.dtype or source.get("dtype"),
        "seed": arguments.seed,
        **request,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    devices = _devices(arguments.gpus, len(calls))
    if arguments.shard:
        index, count = map(int, arguments.shard.split("/"))
        todo = [i for i in _missing(arguments.out, calls, digest) if i % count == index]
        path = arguments.out / f"records.{index}.jsonl"
        _sample(arguments, plan, kernel, calls, shared, source, todo, about | {"run": digest}, path)
        return
    check_folder(arguments.out)
    known = _gathered(arguments.out)
    _refuse_strangers(arguments, known, digest, len(calls))
    todo = _missing(arguments.out, calls, digest)
    if devices and todo:
        _on_devices(arguments, devices)
    else:
        path = arguments.out / RECORDS
        _sample(arguments, plan, kernel, calls, shared, source, todo, about | {"run": digest}, path)
    rows = _gathered(arguments.out)
    made = [row for row in rows if row["prompt_index"] in set(todo)]
    seconds = f", {statistics.median(r['seconds'] for r in made):.3g} s each" if made else ""
    full = sorted({row["full_steps"] for row in rows})
    print(
        f"{arguments.out}: {len(rows)} images, {len(made)} of them new{seconds}; "
        f"{' or '.join(map(str, full))} steps computed in full"
    )


def _request(
    arguments: argparse.Namespace, plan: Plan | None, kernel: Kernel | None
) -> dict[str, Any]:
    """Return which plan a command line asks for, and check that it can be had.

    Raises:
        ValueError: flags do not go together, or an option is unknown or out of range.
    """
    budget = {k: getattr(arguments, k) for k in ("full_steps", "interval")}
    budget = {k: value for k, value in budget.items() if value is not None}
    if arguments.method is None:
        built_in = arguments.full_steps is not None and plan is None and kernel is None
        for flag in ("full_steps", "interval", "kernel", "tap", "options"):
            if getattr(arguments, flag) and not (built_in and flag == "full_steps"):
                name = "option" if flag == "options" else flag.replace("_", "-")
                raise ValueError(f"--{name}: state the --method too")
        if built_in:
            return {"built in": Budget(arguments.full_steps).full_steps}
        return {"plan": plan.digest if plan else None}
    if plan:
        raise ValueError("state either --plan or --method, not both")
    method, options = method_of(arguments.method), parsed_options(arguments.options)
    if len(budget) != 1:
        raise ValueError("--method: state either --full-steps or --interval")
    for flag, value in budget.items():
        if value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")
    method.parts(arguments.full_steps or 1, **options)
    if method.closed_loop:
        raise ValueError(
            f"{arguments.method}: its plans are fitted on calibration prompts; make one with "
            "`eigencache plan` and state it by --plan, or take EigenCache-design with a --kernel"
        )
    if method.needs_kernel and kernel is None:
        raise ValueError(
            f"{arguments.method} needs a kernel: make one with `eigencache calibrate --method "
            f"{arguments.method}` and state it by --kernel"
        )
    if arguments.interval and not hasattr(method.schedule, "every"):
        raise ValueError(f"--interval: {arguments.method} has none; state --full-steps")
    return {
        "method": arguments.method, "options": options, "tap": arguments.tap, **budget,
        "kernel": hashlib.sha256(arguments.kernel.read_bytes()).hexdigest() if kernel else None,
    }  # fmt: skip


def _plan_of(
    arguments: argparse.Namespace, kernel: Kernel | None, pipe: Any, call: Mapping[str, Any]
) -> Plan:
    """Return the plan of the method, for the timesteps that the pipeline takes in a call."""
    from eigencache.calibration.recording import timesteps_of

    timesteps = timesteps_of(pipe, call)
    if arguments.method is None:
        from eigencache.runtime._built_in import built_in_plan

        return built_in_plan(pipe.scheduler, timesteps, Budget(arguments.full_steps))
    method = method_of(arguments.method)
    options = parsed_options(arguments.options)
    return method.plan(
        arguments.full_steps, timesteps, kernel, arguments.tap, every=arguments.interval, **options
    )


def _check_arguments_of(plan: Plan, shared: Mapping[str, Any], path: str) -> None:
    """Raise a PlanError if a plan was made for another number of steps; tell other differences."""
    for name, value in plan.arguments.items():
        if name not in shared or agrees(value, shared[name]):
            continue
        if name == STEPS:
            raise PlanError(
                f"{path}: made for {value} steps, called with {shared[name]}: state --steps "
                f"{value}, or design it again: `eigencache sample --kernel KERNEL --method ... "
                f"--steps {shared[name]}`"
            )
        print(f"{path}: made at {name} {span(value)}, called with {shared[name]}", file=sys.stderr)


def _devices(wish: str | None, count: int) -> list[str]:
    """Return the devices to share `count` prompts among; none: do all in this process.

    Raises:
        ValueError: one is named twice, or the list is empty.
    """
    if wish is None:
        return []
    devices = [name.strip() for name in wish.split(",")]
    gpus = [name for name in devices if name != "cpu"]
    if not all(devices) or len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {wish}: write different devices with commas between, 0,1")
    return devices[:count]


def _on_devices(arguments: argparse.Namespace, devices: Sequence[str]) -> None:
    """Run this command line once for each device, each with its share of the prompts.

    Raises:
        OSError: one of them failed; the others are ended.
    """
    processes = []
    for index, device in enumerate(devices):
        chosen = {"EIGENCACHE_DEVICE": "cpu"} if device == "cpu" else {
            "EIGENCACHE_DEVICE": "gpu", "CUDA_VISIBLE_DEVICES": device
        }  # fmt: skip
        line = [sys.executable, "-m", "eigencache.cli", *arguments.line]
        line += ["--shard", f"{index}/{len(devices)}"]
        processes.append(subprocess.Popen(line, env=os.environ | chosen))
    failed = None
    try:
        waiting = dict(zip(processes, devices, strict=True))
        while waiting and failed is None:
            for process in list(waiting):
                try:
                    status = process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
                device = waiting.pop(process)
                failed = device if status else failed
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if failed is not None:
        raise OSError(
            f"--gpus: sampling on device {failed} failed, as it says above; the images made so far "
            "are kept, --resume goes on"
        )


def _sample(
    arguments: argparse.Namespace, plan: Plan | None, kernel: Kernel | None,
    calls: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], source: Mapping[str, str],
    todo: Sequence[int], about: Mapping[str, Any], records: Path,
) -> None:  # fmt: skip
    """Sample prompts, write their images, and add a line to the records for each."""
    if not todo:
        return
    from tqdm import tqdm

    from eigencache._upstream import device_of
    from eigencache.calibration.sampler import image_seed, sample
    from eigencache.commands.prompts import opened

    pipe = loaded(arguments, calls, shared, dtype_of(arguments, source))
    if arguments.method or arguments.full_steps is not None:
        plan = _plan_of(arguments, kernel, pipe, {**shared, **opened(calls[0])})
    names = ("eigencache", "torch", "diffusers", "transformers")
    versions = {"python": platform.python_version()} | {k: metadata.version(k) for k in names}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(todo, desc="sample", unit="image"):
        seed = image_seed(arguments.seed, index)
        call = {**shared, **opened(calls[index])}
        made = sample(pipe, call, seed, plan, arguments.anchor_device)
        path = write_frames(made.frames, arguments.out / f"{index:05d}")
        row = {
            "prompt_index": index,
            "prompt": text_of(calls[index]),
            "image": path.name,
            "sha256": hash_of_frames(path),
            "noise_seed": seed,
            "seconds": made.seconds,
            "decode_seconds": made.decode_seconds,
            "peak_memory_mb": made.peak_memory_mb,
            "full_steps": made.full_steps,
            "steps": len(plan) if plan else made.full_steps,
            "plan": plan.digest if plan else None,
            "method": plan.method if plan else "full",
            "device": str(device_of(pipe)),
            "versions": versions,
            **{k: v for k, v in about.items() if k not in ("plan", "method")},
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "call": described(calls[index]),
        }
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _gathered(folder: Path) -> list[Row]:
    """Return the records of a folder in the order of prompts, joined into one file.

    Raises:
        ValueError: a file of records is damaged.
    """
    parts = sorted(folder.glob("records.*.jsonl"))
    found = {row["prompt_index"]: row for path in [folder / RECORDS, *parts] for row in _rows(path)}
    ordered = [found[index] for index in sorted(found)]
    text = "".join(json.dumps(row) + "\n" for row in ordered)
    path = folder / RECORDS
    if parts or (path.exists() and path.read_text("utf-8") != text):
        with replacing(path) as part:
            part.write_text(text, "utf-8")
    for path in parts:
        path.unlink()
    return ordered


def _rows(path: Path) -> list[Row]:
    """Return the records in a file; none if it is not there. A line cut short does not count.

    Raises:
        ValueError: the file is damaged.
    """
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    try:
        rows = [json.loads(line) for line in lines]
        for row in rows:
            _ = int(row["prompt_index"]), str(row["image"]), row["run"], row["call"], row["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); choose another folder") from error
    return rows


def _refuse_strangers(
    arguments: argparse.Namespace, rows: Iterable[Row], digest: str, count: int
) -> None:
    """Raise a ValueError if a folder holds what is not of this run, or anything without --resume.

    Args:
        arguments: of the command line.
        rows: of the folder's records.
        digest: of this run.
        count: of prompts.
    """
    out = arguments.out
    known = {row["image"]: row for row in rows}
    videos = {p.name for p in out.glob("*") if p.is_dir() and p.name.isdigit()}
    images = {p.name for p in out.glob("*.png")} | videos
    if (known or images) and not arguments.resume:
        raise ValueError(
            f"{out}: holds images already, {len(images | known.keys())} of them; choose another "
            "folder, or state --resume to make those that this run still lacks"
        )
    others = sorted(name for name, row in known.items() if row.get("run") != digest)
    if others:
        raise ValueError(
            f"{out}: {len(others)} images are of another run, {others[0]} among them: its plan, "
            "model, arguments, dtype or seed differ; choose another folder"
        )
    ours = {f"{index:05d}" for index in range(count)}
    strays = sorted(name for name in images - known.keys() if name.removesuffix(".png") not in ours)
    if strays:
        raise ValueError(f"{out}: {strays[0]} is none of this run; choose another folder")


def _missing(folder: Path, calls: Sequence[Mapping[str, Any]], digest: str) -> list[int]:
    """Return the prompts whose image is not in a folder as this run has recorded it."""
    done = set()
    for row in _rows(folder / RECORDS):
        index, image = row["prompt_index"], folder / row["image"]
        same = index < len(calls) and row["call"] == described(calls[index])
        whole = image.exists() and hash_of_frames(image) == row["sha256"]
        if same and whole and row["run"] == digest:
            done.add(index)
    return [index for index in range(len(calls)) if index not in done]

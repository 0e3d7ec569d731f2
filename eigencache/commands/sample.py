"""Sample an image of every prompt, by a plan, by a method or without a cache.

Image I is of prompt I of the file, counted from 0, and is written as OUT/0000I.png; the frames of a
video are OUT/0000I/FRAME.png. Its noise depends on the seed and I alone, so that runs with
different plans can be compared image by image; they are the images that the workflow makes with
that seed. OUT/records.jsonl has one line for each image: its prompt, seed, seconds, plan, hash ...
OUT/plan.safetensors is the plan that all images of OUT are made by, if there is one. It is written
before the first image, and used again by --resume and by every process of --gpus.

examples:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt \\
      --plan plan.safetensors --out images

  by a built-in plan, for which nothing is calibrated:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --full-steps 9 \\
      --out images

  by a plan for 40 dB, which a probe of the first prompt makes:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --psnr 40 \\
      --out images

  by a method that needs no kernel, on two GPUs:
  eigencache sample --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --steps 50 \\
      --method HiCache --interval 5 --option order=2 --option scale=0.6 --gpus 0,1 --out images

  the full run, to compare with:
  eigencache sample --model data/emoji-flux --prompts data/prompts/emoji-evaluation.txt \\
      --num-prompts 8 --height 128 --width 128 --max-sequence-length 24 --out full
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from eigencache._checks import agrees, span
from eigencache._files import replacing
from eigencache._frames import hash_of_frames, write_frames
from eigencache.built_in import Budget
from eigencache.commands._common import Calls, check_folder, parsed_options
from eigencache.commands._flags import add_call, add_method, add_model, at_least
from eigencache.commands.prompts import described, text_of
from eigencache.kernel import STEPPING, Kernel
from eigencache.methods import method_of
from eigencache.plan import Plan, PlanError
from eigencache.sharing import PLAN, load_plan

RECORDS = "records.jsonl"
STEPS = "num_inference_steps"
# Schedulers that visit more timesteps than the number of steps that they are set to.
TAKE_MORE = ("Heun", "KDPM2", "PNDM", "RePaint", "Wuerstchen")
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
    budget = method.add_mutually_exclusive_group()
    budget.add_argument(
        "--full-steps", type=at_least(1), metavar="N",
        help="how many steps are computed in full; without a method or kernel, by a built-in plan",
    )  # fmt: skip
    budget.add_argument(
        "--psnr", type=float, metavar="DB",
        help="or, without a method or kernel: a quality in dB to reach; a probe of the first "
        "prompt, with other noise, makes a plan for it",
    )  # fmt: skip
    budget.add_argument(
        "--interval", type=at_least(1), metavar="N",
        help="or: one full step in every N, after the first",
    )  # fmt: skip
    method.add_argument(
        "--kernel", type=Path, metavar="FILE",
        help="of `eigencache calibrate`, for methods that need one; of any number of steps",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=at_least(0), default=2026,
        help="seed of the images' noise; by default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--anchor-device", metavar="DEVICE",
        help="where the cache keeps features: cpu, or a GPU such as cuda:0; by default where they "
        "are made",
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
    add_call(
        parser, "the arguments of the plan or kernel apply; where it has none, the pipeline's own "
        "defaults",
    )  # fmt: skip


class Job(NamedTuple):
    """What a command line asks for, as every process that samples needs it.

    Attributes:
        arguments: of the command line.
        plan: that is stated, if any.
        kernel: that is stated, if any.
        calls: one for each prompt.
        about: what tells the images of this run from those of others, the hash of all as "run".
    """

    arguments: argparse.Namespace
    plan: Plan | None
    kernel: Kernel | None
    calls: Calls
    about: Mapping[str, Any]


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the images, and say what the cache did."""
    out, devices = arguments.out, _devices(arguments.gpus)
    job = _job(arguments)
    check_folder(out)
    known = _gathered(out)
    _refuse_strangers(arguments, known, job)
    todo, had_plan = _missing(out, known, job), (out / PLAN).exists()
    try:
        if devices and todo:
            _on_devices(job, todo, devices[: len(todo)])
        elif todo:
            _sample(job, todo, out / RECORDS, contextlib.nullcontext())
    finally:
        rows = _gathered(out)
        if not (rows or had_plan):  # it failed, and nothing would say which run the plan is of
            (out / PLAN).unlink(missing_ok=True)
    made = [row for row in rows if row["prompt_index"] in set(todo)]
    seconds = f", {statistics.median(r['seconds'] for r in made):.3g} s each" if made else ""
    full = sorted({row["full_steps"] for row in rows})
    print(
        f"{out}: {len(rows)} images, {len(made)} of them new{seconds}; "
        f"{' or '.join(map(str, full))} steps computed in full"
    )


def _job(arguments: argparse.Namespace) -> Job:
    """Return what a command line asks for; nothing of it needs torch.

    Raises:
        OSError: a file is missing.
        ValueError: a file is faulty, flags do not go together, or an option is out of range.
    """
    plan = load_plan(arguments.plan) if arguments.plan else None
    kernel = Kernel.load(arguments.kernel) if arguments.kernel else None
    request = _request(arguments, plan, kernel)
    if arguments.anchor_device and request == {"plan": None}:
        raise ValueError(
            "--anchor-device: every step is computed in full, so nothing is cached; state a "
            "--plan, --method, --full-steps or --psnr, or leave it out"
        )
    calls = Calls(arguments, plan or kernel)
    shared = calls.shared
    if plan:
        shared.setdefault(STEPS, len(plan))
        _check_arguments_of(plan, shared, arguments.plan)
    steps, wanted = shared.get(STEPS), arguments.full_steps or 0
    if isinstance(steps, int) and _takes_as_many(arguments.model):
        _check_budget(wanted, steps)
    about = {
        "model": arguments.model,
        "pipeline": arguments.pipeline,
        "arguments": shared,
        "dtype": calls.dtype,
        "seed": arguments.seed,
        **request,
    }
    about["run"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Job(arguments, plan, kernel, calls, about)


def _request(
    arguments: argparse.Namespace, plan: Plan | None, kernel: Kernel | None
) -> dict[str, Any]:
    """Return which plan a command line asks for, and check that it can be had.

    Raises:
        ValueError: flags do not go together, or an option is unknown or out of range.
    """
    if arguments.method is None:
        wanted = arguments.full_steps is not None or arguments.psnr is not None
        built_in = wanted and plan is None and kernel is None
        if arguments.psnr is not None and not built_in:
            raise ValueError("--psnr makes a plan of its own: leave out --plan and --kernel")
        for flag in ("full_steps", "interval", "kernel", "tap", "options"):
            if getattr(arguments, flag) and not (built_in and flag == "full_steps"):
                name = "option" if flag == "options" else flag.replace("_", "-")
                if plan:
                    raise ValueError(
                        f"--{name}: a plan has its own full steps, tap and weights; state either "
                        f"--plan or --{name}"
                    )
                raise ValueError(f"--{name}: state the --method too")
        if built_in:
            wish = Budget(arguments.full_steps, psnr=arguments.psnr)
            return {"built in": wish.full_steps} if wish.full_steps else {"psnr": wish.psnr}
        return {"plan": plan.digest if plan else None}
    if arguments.psnr is not None:
        raise ValueError(
            "--psnr with a --method: its plans are judged by calibration prompts; make one with "
            "`eigencache plan --psnr` and state it by --plan"
        )
    if plan:
        raise ValueError("state either --plan or --method, not both")
    method, options = method_of(arguments.method), parsed_options(arguments.options)
    budget = {"full_steps": arguments.full_steps, "interval": arguments.interval}
    budget = {name: value for name, value in budget.items() if value is not None}
    if not budget:
        raise ValueError("--method: state either --full-steps or --interval")
    method.parts(arguments.full_steps, arguments.interval, **options)
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
    return {
        "method": arguments.method, "options": options, "tap": arguments.tap, **budget,
        "kernel": kernel.digest if kernel else None,
    }  # fmt: skip


def _settled(job: Job, pipe: Any) -> Plan | None:
    """Return the plan to sample by: that of the folder, or one made now and written there.

    Raises:
        PlanError: the folder's images are by another plan than the one made now.
    """
    path = job.arguments.out / PLAN
    if path.exists():
        return Plan.load(path)
    plan = _plan_of(job, pipe)
    if plan:
        _check_plan(plan, path, _rows(job.arguments.out / RECORDS))
        plan.save(path)
    return plan


def _check_plan(plan: Plan, path: Path, rows: Iterable[Row]) -> None:
    """Raise a PlanError if a folder's images are not all by a plan."""
    other = next((row for row in rows if row["plan"] != plan.digest), None)
    if other:
        theirs = f"plan {other['plan'][:12]}" if other["plan"] else "no plan"
        raise PlanError(
            f"{path}: this plan is {plan.digest[:12]}, but {other['image']} was made by {theirs}; "
            "put that one there, or none, or choose another folder"
        )


def _plan_of(job: Job, pipe: Any) -> Plan | None:
    """Return the plan that is asked for: one made now is for the timesteps of the first call."""
    from eigencache.calibration.recording import outline

    arguments, about, call = job.arguments, job.about, job.calls[0]
    if "plan" in about:
        return job.plan
    for name in (STEPS, "strength"):
        if len({own.get(name) for own in job.calls.own}) > 1:
            raise ValueError(
                f"{name} differs between the prompts, and one plan serves all images of a folder: "
                "sample those of each into a folder of its own"
            )
    if "psnr" in about:
        from eigencache.calibration.probe import probe

        return probe(pipe, call, about["psnr"])
    timesteps, kept, guidance = outline(pipe, call)
    _check_budget(arguments.full_steps or 0, len(timesteps))
    if "built in" in about:
        from eigencache.runtime._built_in import built_in_plan
        from eigencache.runtime._guidance import is_scale

        budget = Budget(about["built in"])
        plan = built_in_plan(pipe.scheduler, timesteps, guidance, budget, kept)
        told = {name: value for name, value in call.items() if is_scale(name)}
        return replace(plan, arguments=told)  # images with other guidance are warned of
    plan = method_of(about["method"]).plan(
        arguments.full_steps, timesteps, job.kernel, about["tap"], every=arguments.interval,
        kept=kept, **about["options"],
    )  # fmt: skip
    if job.kernel is None:
        return plan
    # Of a kernel that was made at other steps the plan does not know how it is called.
    steps = {k: v for k, v in call.items() if k in STEPPING and k not in plan.arguments}
    return replace(plan, arguments={**plan.arguments, **steps})


def _takes_as_many(model: str) -> bool:
    """Return whether a model is known, before it is loaded, to take just the steps it is asked."""
    index = Path(model) / "model_index.json"
    if not index.is_file():
        return False
    parts = json.loads(index.read_text(encoding="utf-8"))
    _, scheduler = parts.get("scheduler") or (None, None)  # its library and class
    return isinstance(scheduler, str) and not any(name in scheduler for name in TAKE_MORE)


def _check_budget(full_steps: int, steps: int) -> None:
    if full_steps > steps:
        raise ValueError(
            f"--full-steps {full_steps}: an image takes only {steps} steps; state {steps} or fewer"
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


def _devices(wish: str | None) -> list[str]:
    """Return the devices to share prompts among; none: do all in this process.

    Raises:
        ValueError: one is named twice, or the list is empty.
    """
    if wish is None:
        return []
    devices = [name.strip() for name in wish.split(",")]
    gpus = [name for name in devices if name != "cpu"]
    if not all(devices) or len(set(gpus)) < len(gpus) or len(wish.split()) > wish.count(",") + 1:
        raise ValueError(f"--gpus {wish}: write different devices with commas between, 0,1")
    return devices


def _on_devices(job: Job, todo: Sequence[int], devices: Sequence[str]) -> None:
    """Sample prompts in one process for each device.

    Raises:
        OSError: one of them failed; the others are ended.
    """
    from torch import multiprocessing

    lock = multiprocessing.get_context("spawn").Lock()
    try:
        multiprocessing.spawn(_share, (job, todo, devices, lock), len(devices))
    except (
        multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException
    ) as error:  # fmt: skip
        why = str(error).strip().splitlines()[-1]
        raise OSError(
            f"--gpus: sampling on device {devices[error.error_index]} failed: {why}. The images "
            "made so far are kept: run again with --resume"
        ) from error


def _share(
    index: int, job: Job, todo: Sequence[int], devices: Sequence[str],
    lock: contextlib.AbstractContextManager,
) -> None:  # fmt: skip
    """Sample the share of one device, in a process of its own that has not used torch yet."""
    device = devices[index]
    os.environ["EIGENCACHE_DEVICE"] = "cpu" if device == "cpu" else "gpu"
    if device != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _sample(job, todo[index :: len(devices)], job.arguments.out / f"records.{index}.jsonl", lock)


def _sample(
    job: Job, todo: Sequence[int], records: Path, lock: contextlib.AbstractContextManager
) -> None:
    """Sample prompts, write their images, and add a line to the records for each.

    Args:
        job: what is asked for.
        todo: the prompts to sample.
        records: the file of records to add to.
        lock: held while the plan is made, so that one of several processes makes it.
    """
    from tqdm import tqdm

    from eigencache._upstream import device_of
    from eigencache.calibration.sampler import image_seed, sample

    arguments, calls = job.arguments, job.calls
    _check_device(arguments.anchor_device)
    pipe = calls.pipeline()
    with lock:
        plan = _settled(job, pipe)
    names = ("eigencache", "torch", "diffusers", "transformers")
    versions = {"python": platform.python_version()} | {k: metadata.version(k) for k in names}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(todo, desc="sample", unit="image"):
        seed = image_seed(arguments.seed, index)
        made = sample(pipe, calls[index], seed, plan, arguments.anchor_device)
        path = write_frames(made.frames, arguments.out / f"{index:05d}")
        row = {
            "prompt_index": index,
            "prompt": text_of(calls.own[index]),
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
            **{k: v for k, v in job.about.items() if k not in ("plan", "method")},
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "call": described(calls.own[index]),
        }
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _check_device(name: str | None) -> None:
    """Raise a ValueError if features cannot be kept on a device."""
    import torch

    count = torch.cuda.device_count()
    known = ["cpu", *["cuda"][:count], *(f"cuda:{index}" for index in range(count))]
    if name not in (None, *known):
        raise ValueError(f"--anchor-device {name}: no such device; there is {' '.join(known)}")


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
            _ = row["plan"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); choose another folder") from error
    return rows


def _refuse_strangers(arguments: argparse.Namespace, rows: Iterable[Row], job: Job) -> None:
    """Raise a ValueError if a folder holds what is not of this run, or anything without --resume.

    Args:
        arguments: of the command line.
        rows: of the folder's records.
        job: this run.
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
    others = sorted(name for name, row in known.items() if row["run"] != job.about["run"])
    if others:
        raise ValueError(
            f"{out}: {len(others)} images are of another run, {others[0]} among them: its plan, "
            "model, arguments, dtype or seed differ; choose another folder"
        )
    path = out / PLAN
    if path.exists():
        found = Plan.load(path)
        _check_plan(found, path, known.values())
        if not known and found.digest != job.about.get("plan"):
            raise ValueError(
                f"{path}: no image here says that this plan, {found.digest[:12]}, is the one asked "
                f"for; state --plan {path} to sample by it, delete it, or choose another folder"
            )
    ours = {f"{index:05d}" for index in range(len(job.calls))}
    strays = sorted(name for name in images - known.keys() if name.removesuffix(".png") not in ours)
    if strays:
        raise ValueError(f"{out}: {strays[0]} is not of this run; choose another folder")


def _missing(folder: Path, rows: Iterable[Row], job: Job) -> list[int]:
    """Return the prompts whose image is not in a folder as its records of this run say."""
    done = set()
    for row in rows:
        index, image = row["prompt_index"], folder / row["image"]
        same = index < len(job.calls) and row["call"] == described(job.calls.own[index])
        if same and image.exists() and hash_of_frames(image) == row["sha256"]:
            done.add(index)
    return [index for index in range(len(job.calls)) if index not in done]

"""Plans and kernels on a model hub: fetch, push, and the card that says what a plan is.

A repository of the hub holds one plan, `plan.safetensors`, its card, `README.md`, and possibly the
kernel that it was made from, `kernel.safetensors`. The hub is that of huggingface_hub.
"""

import contextlib
import csv
import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from string import Template

from eigencache.kernel import Kernel
from eigencache.plan import Plan, PlanError

PLAN, KERNEL, CARD = "plan.safetensors", "kernel.safetensors", "README.md"
PACKAGES = ("eigencache", "diffusers", "torch")  # whose versions a card states


def load_plan(path: str | os.PathLike, revision: str | None = None) -> Plan:
    """Return the plan in a file, or in a repository of the Hugging Face hub.

    Args:
        path: of a file that `Plan.save` or the workflow wrote, `.safetensors`; or the id of a
            repository that `Plan.push_to_hub` made, "user/repo".
        revision: a branch, tag or commit of the repository; by default its main branch.
            "user/repo@revision" says the same.

    Raises:
        FileNotFoundError: there is neither such a file nor such a repository or revision, or the
            repository has no plan.
        OSError: the hub cannot be reached, and the plan was not fetched before.
        PlanError: the file is truncated, is not a plan, or holds an invalid one.
        ValueError: a revision is stated of a file.
    """
    found = located(path, PLAN, revision)
    try:
        return Plan.load(found)
    except PlanError as error:
        raise error if os.fspath(path) == str(found) else PlanError(f"{path}: {error}") from error


def load_kernel(path: str | os.PathLike) -> Kernel:
    """Return the kernel in a file, or in a repository of the hub; otherwise as `load_plan`."""
    return Kernel.load(located(path, KERNEL))


def is_hub_id(name: str | os.PathLike) -> bool:
    """Return whether a name can be that of a repository on the hub: "user/repo"."""
    if not isinstance(name, str) or name.endswith(".safetensors"):
        return False
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def located(name: str | os.PathLike, file: str, revision: str | None = None) -> Path:
    """Return the path of a file on this disk: the one named, or one fetched from the hub.

    Args:
        name: a path, or "user/repo" or "user/repo@revision" of the hub.
        file: which file of a repository.
        revision: of the repository.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load_plan` says.
    """
    if os.path.exists(name):
        if revision is not None:
            raise ValueError(f"{name}: it is a file; only a repository has revisions")
        return Path(name)
    repo, _, stated = str(name).partition("@")
    if isinstance(name, os.PathLike) or not is_hub_id(repo):
        raise FileNotFoundError(
            f"{name}: no such file, nor can it be a repository of the hub, which is named user/repo"
        )
    from huggingface_hub import hf_hub_download

    with _explained(repo, file):
        return Path(hf_hub_download(repo, file, revision=revision or stated or None))


def push_to_hub(
    plan: Plan, repo: str, *, kernel: Kernel | None = None, model: str | None = None,
    scores: str | os.PathLike | None = None, private: bool | None = None,
) -> str:  # fmt: skip
    """Write a plan and its card to a repository of the hub, as `Plan.push_to_hub` says."""
    if not is_hub_id(repo):
        raise ValueError(f"{repo}: not the id of a repository, which is user/repo")
    text = card(plan, repo, model, scores)
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder, _explained(repo, PLAN):
        plan.save(Path(folder) / PLAN)
        if kernel is not None:
            kernel.save(Path(folder) / KERNEL)
        (Path(folder) / CARD).write_text(text, encoding="utf-8")
        api = HfApi(library_name="eigencache", library_version=metadata.version("eigencache"))
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Write a plan")
    return done.oid


def card(
    plan: Plan, repo: str = PLAN, model: str | None = None,
    scores: str | os.PathLike | None = None,
) -> str:  # fmt: skip
    """Return the card of a plan as Markdown: what it is for, how good it is, how to use it.

    Args:
        plan: to describe.
        repo: what `load_plan` is given in the example: the id of a repository, or a path.
        model: folder or hub id of the model that it is for, which a plan does not know.
        scores: CSV of `eigencache score`, of images by this plan against those of full runs.

    Raises:
        OSError, ValueError: there are no such scores, or not of one set of images.
    """
    from huggingface_hub import ModelCardData

    about = ModelCardData(
        library_name="eigencache", tags=["eigencache", "diffusers"],
        base_model=model if model and is_hub_id(model) else None,
    )  # fmt: skip
    arguments = dict(plan.arguments)
    arguments.setdefault("num_inference_steps", len(plan))
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    kind = plan.pipeline or ""
    predicted = "" if math.isnan(plan.predicted_psnr) else f"{plan.predicted_psnr:.1f} dB"
    rows = {
        "model": f"{model} ({plan.model})" if model and plan.model else model or plan.model,
        "pipeline": plan.pipeline,
        "scheduler": plan.scheduler,
        "steps": len(plan),
        "budget": f"{len(plan.full_steps)} full steps: {', '.join(map(str, plan.full_steps))}",
        "tap": plan.tap,
        "arguments": call,
        "dtype": plan.source.get("dtype"),
        "method": plan.method,
        "predicted PSNR": predicted,
        "measured PSNR": _measured(scores) if scores is not None else None,
        **{f"calibration: {name}": text for name, text in sorted(plan.source.items())},
        "hash": plan.digest,
        "versions": ", ".join(f"{n} {metadata.version(n)}" for n in PACKAGES),
    }
    kept = {k: " ".join(str(v).replace("|", "/").split()) for k, v in rows.items() if v}
    template = resources.files("eigencache").joinpath("card.md.txt").read_text("utf-8")
    return Template(template).substitute(
        about=about.to_yaml(), full=len(plan.full_steps), steps=len(plan), call=call,
        rows="\n".join(f"| {name} | {text} |" for name, text in kept.items()),
        pipeline=kind if kind.isidentifier() else "DiffusionPipeline", repo=repr(repo),
        model=repr(model or "MODEL"),
    )  # fmt: skip


def _measured(path: str | os.PathLike) -> str:
    """Return the mean PSNR of the images in a table of `eigencache score`.

    Raises:
        OSError, ValueError: as `card` says.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"run", "psnr"} <= rows[0].keys() or len({row["run"] for row in rows}) > 1:
        raise ValueError(
            f"{path}: not the scores of one set of images with their psnr, as `eigencache score "
            "--images NAME=DIR --metrics psnr` writes them"
        )
    mean = statistics.fmean(float(row["psnr"]) for row in rows)
    return f"{mean:.1f} dB, a mean over {len(rows)} images"


@contextlib.contextmanager
def _explained(repo: str, file: str) -> Iterator[None]:
    """Raise what the hub answers as an OSError that says what is wrong with a repository."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo}: no such file, and no such repository on {constants.ENDPOINT} that you may "
            "use; `hf auth login` lets you use those that are private, and write your own"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise OSError(
            f"{repo}: no such file, and the hub {constants.ENDPOINT} cannot be reached, nor was "
            f"{file} of that repository fetched before ({type(error).__name__})"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo}: the repository has no {file}") from error
    except errors.HTTPError as error:
        said = "refuses" if isinstance(error, errors.HfHubHTTPError) else "cannot be reached"
        raise OSError(f"{repo}: the hub {constants.ENDPOINT} {said}: {error}") from error

"""Folders of images, made here or elsewhere: paired with those of a reference, and scored.

Images are paired by file name. In the order of their names they belong to the prompts.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eigencache._frames import frames_of
from eigencache.metrics import CLIP, METRICS

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "reference"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class FolderError(ValueError):
    """Folders do not go together, or a model is missing; the message names what."""


def pair(reference: str, folders: Mapping[str, str], prompts: Sequence[str]) -> "pd.DataFrame":
    """Return `run, prompt_index, prompt, seed, image` of the reference and of all folders.

    Raises:
        FolderError: a file name is missing on either side, sizes differ, or there are not as many
            images as prompts; the message names them.
    """
    import pandas as pd

    if REFERENCE in folders:
        raise FolderError(f"--images {REFERENCE}: the name is taken by --reference")
    known, rows = _images(reference), []
    if len(known) != len(prompts):
        raise FolderError(
            f"{reference} has {len(known)} images, but there are {len(prompts)} prompts; images, "
            "sorted by name, are matched with the prompts in order"
        )
    for run, folder in {REFERENCE: reference, **folders}.items():
        found = _images(folder)
        if found.keys() != known.keys():
            raise FolderError(
                f"{folder} and {reference}: names differ; only in the first: "
                f"{_some(found.keys() - known.keys())}, only in the second: "
                f"{_some(known.keys() - found.keys())}"
            )
        other = [name for name in known if found[name] != known[name]]
        if other:
            sizes = f"{_size(found[other[0]])} and {_size(known[other[0]])}"
            raise FolderError(f"{folder} and {reference}: sizes differ, {sizes}: {_some(other)}")
        rows += [
            {"run": run, "prompt_index": i, "prompt": prompts[i], "seed": 0,
             "image": (Path(folder) / name).as_posix()}
            for i, name in enumerate(known)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def model_folders(
    metrics: Sequence[str], clip: str, folders: Mapping[str, str]
) -> dict[str, list[Path]]:
    """Return the metrics to the folders of the models they need.

    Args:
        metrics: their names.
        clip: the model of clip_score.
        folders: of models that are not in models/.

    Raises:
        FolderError: a model is not there; the message says how to fetch it.
    """
    found = {}
    for name in metrics:
        models = [clip if model == CLIP else model for model in METRICS[name].models]
        found[name] = [Path(folders.get(model, f"models/{model}")) for model in models]
        for model, folder in zip(models, found[name], strict=True):
            if not folder.is_dir():
                raise FolderError(
                    f"{folder}: no such folder, and {name} needs the model {model}; "
                    f"`--model {model}=DIR` names where it is. In a clone of the project, "
                    f"`snakemake models/{model}/manifest.json --cores 1` fetches it; psnr and "
                    "ssim need no model"
                )
    return found


def score_folders(
    records: "pd.DataFrame", needed: Mapping[str, list[Path]]
) -> tuple["pd.DataFrame", "pd.DataFrame | None"]:
    """Score the images of folders against those of the reference.

    Args:
        records: from `pair`.
        needed: the metrics, from `model_folders`.

    Returns:
        `run, prompt_index, file` and a column per metric, one row per image; and the metrics of
        sets, one row per folder, or None if none of them is of sets.
    """
    import torch

    from eigencache._device import default_device
    from eigencache.metrics.scorers import Scorers
    from eigencache.metrics.scoring import features_of, score_records
    from eigencache.metrics.sets import score_sets

    torch.backends.cudnn.allow_tf32 = False
    scorers = Scorers(needed, default_device())
    of_reference = records["run"] == REFERENCE
    scores = score_records(records[~of_reference], records[of_reference], scorers)
    names = records.drop_duplicates("prompt_index").set_index("prompt_index")["image"]
    scores.insert(2, "file", scores["prompt_index"].map(lambda i: Path(names[i]).name))
    scores = scores.drop(columns="reference")
    if not scorers.sets:
        return scores, None
    features = features_of(records, scorers)
    runs = [run for run in records["run"].unique() if run != REFERENCE]
    of_sets = score_sets(features, features, runs, [REFERENCE])
    return scores, of_sets.drop(columns="reference")


def summary(scores: "pd.DataFrame") -> str:
    """Return the mean of each metric over each run's images as text, with its interval in brackets.

    Args:
        scores: from `score_folders`.
    """
    from eigencache.metrics.statistics import FEWEST, LEVEL, mean_interval

    def told(metric: str, values: "pd.Series") -> str:
        mean, low, high = (f"{x:.{METRICS[metric].digits}f}" for x in mean_interval(values))
        return mean if low == "nan" else f"{mean} [{low}, {high}]"

    metrics = [str(name) for name in scores if name in METRICS]
    if not metrics:
        return ""
    runs = scores.groupby("run", sort=False)
    count = int(runs.size().min())
    if count < FEWEST:
        note = f"No intervals: there are {count} images, and it takes {FEWEST} or more."
    else:
        note = f"In brackets: {LEVEL:.0%} bootstrap intervals over {count} images."
    return f"{runs.agg({metric: partial(told, metric) for metric in metrics}).to_string()}\n{note}"


def _images(folder: str) -> dict[str, tuple[int, ...]]:
    """Return the images of a folder, in the order of their names, each with its size in pixels.

    A folder of frames is a video; behind its size is its number of frames.
    """
    from PIL import Image

    if not Path(folder).is_dir():
        raise FolderError(f"{folder}: no such folder")
    sizes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(folder).iterdir()):
        video = path.is_dir() and any(path.glob("*.png"))
        if video or path.suffix.lower() in SUFFIXES:
            frames = frames_of(path)
            with Image.open(frames[0]) as image:
                sizes[path.name] = (*image.size, *([len(frames)] if video else []))
    return sizes


def _some(names: Collection[str]) -> str:
    names = sorted(names)
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
    )


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))

"""Score folders of images, made here or elsewhere, against a folder of reference images.

Images are paired by file name. In the order of their names they belong to the lines of the prompts.
Everything is checked before anything is scored. The models of metrics are expected in models/NAME.
Printed is the mean of each metric, with its 95 % bootstrap interval over 6 images or more.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eigencache._frames import frames_of
from eigencache.commands._common import check_file
from eigencache.commands.prompts import read_prompts
from eigencache.metrics import CLIP, METRICS

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = """\
examples:
  eigencache score --reference full --images cached=images --prompts prompts.txt --out scores.csv

  with metrics that need no model:
  eigencache score --reference full --images a=images-a b=images-b --prompts prompts.txt \\
      --metrics psnr ssim --out scores.csv
"""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEFAULT = ("psnr", "ssim", "st_lpips_alex", "clip_score")
REFERENCE = "reference"


class FolderError(ValueError):
    """Folders do not go together, or a model is missing; the message names what."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folders, the prompts, the metrics and where to write the scores."""
    parser.add_argument("--reference", required=True, metavar="DIR", help="images to compare with")
    parser.add_argument(
        "--images", required=True, nargs="+", action="extend", metavar="NAME=DIR",
        help="a name and the folder to score under it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--prompts", required=True, metavar="FILE", help="as for `sample`")
    parser.add_argument(
        "--metrics", nargs="+", default=list(DEFAULT), choices=list(METRICS), metavar="METRIC",
        help=f"some of {', '.join(METRICS)}; by default {' '.join(DEFAULT)}",
    )  # fmt: skip
    parser.add_argument(
        "--clip", default="CLIP-ViT-B-32", help="model of clip_score; by default %(default)s"
    )
    parser.add_argument(
        "--model", nargs="*", action="extend", default=[], metavar="NAME=DIR",
        help="folder of a metric's model, if it is not models/NAME",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; by default 1")
    parser.add_argument("--out", required=True, metavar="FILE.csv", help="one row per image")


def run(arguments: argparse.Namespace) -> None:
    """Score folders as the command line says; write FILE.csv, and FILE-sets.csv if it is needed.

    Raises:
        FolderError: the folders or the prompts do not go together, or a model is missing.
        ValueError: what computes the metrics is not installed.
    """
    try:
        _score(arguments)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; run `pip install 'eigencache[metrics]'`") from error


def _score(arguments: argparse.Namespace) -> None:
    if arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    check_file(Path(arguments.out))
    prompts, folders = read_prompts(arguments.prompts), _named(arguments.images, "--images")
    records = pair(arguments.reference, folders, prompts)
    models = model_folders(arguments.metrics, arguments.clip, _named(arguments.model, "--model"))

    import torch  # not before everything that can be wrong is checked

    from eigencache._device import default_device
    from eigencache._files import replacing
    from eigencache.metrics.scorers import Scorers
    from eigencache.metrics.scoring import features_of, score_records
    from eigencache.metrics.sets import score_sets

    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False
    scorers = Scorers(models, default_device())
    of_reference = records["run"] == REFERENCE
    scores = score_records(records[~of_reference], records[of_reference], scorers)
    names = records.drop_duplicates("prompt_index").set_index("prompt_index")["image"]
    scores.insert(2, "file", scores["prompt_index"].map(lambda i: Path(names[i]).name))
    written = {arguments.out: scores}
    if scorers.sets:
        features = features_of(records, scorers)
        of_sets = score_sets(features, features, list(folders), [REFERENCE])
        written[f"{Path(arguments.out).with_suffix('')}-sets.csv"] = of_sets
    for path, table in written.items():
        with replacing(path) as part:
            table.drop(columns="reference").to_csv(part, index=False)
    print(summary(scores, list(scorers.images)))
    if scorers.sets:
        print(of_sets.drop(columns="reference").to_string(index=False))


def summary(scores: "pd.DataFrame", metrics: Sequence[str]) -> str:
    """Return the mean of each metric over each run's images as text, with its interval in brackets.

    Args:
        scores: one row per image, its `run` and a column per metric.
        metrics: the columns.
    """
    from eigencache.metrics.statistics import FEWEST, LEVEL, mean_interval

    def told(metric: str, values: "pd.Series") -> str:
        mean, low, high = (f"{x:.{METRICS[metric].digits}f}" for x in mean_interval(values))
        return mean if low == "nan" else f"{mean} [{low}, {high}]"

    runs = scores.groupby("run", sort=False)
    table = runs.agg({metric: partial(told, metric) for metric in metrics})
    lines, count = [table.to_string()] if metrics else [], int(runs.size().min())
    if count < FEWEST:
        lines.append(f"No intervals: there are {count} images, and it takes {FEWEST} or more.")
    else:
        lines.append(f"In brackets: {LEVEL:.0%} bootstrap intervals over {count} images.")
    return "\n".join(lines if metrics else [])


def pair(reference: str, folders: Mapping[str, str], prompts: Sequence[str]) -> "pd.DataFrame":
    """Return `run, prompt_index, prompt, seed, image` of the reference and of all folders.

    Raises:
        FolderError: a file name is missing on either side, sizes differ, or there are not as many
            images as prompts; the message names them.
    """
    import pandas as pd

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


def _named(options: Sequence[str], what: str) -> dict[str, str]:
    """Return what options `NAME=DIR` say."""
    named = {}
    for option in options:
        name, sign, folder = option.partition("=")
        if not (name and sign and folder):
            raise FolderError(f"{what} {option}: write NAME=DIR")
        if name in named or name == REFERENCE:
            raise FolderError(f"{what} {option}: the name {name!r} is taken")
        named[name] = folder
    return named


def _some(names: Collection[str]) -> str:
    names = sorted(names)
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
    )


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))

"""Score folders of images, made here or elsewhere, against a folder of reference images.

Images are paired by file name. In the order of their names they belong to the lines of the prompts.
Everything is checked before anything is scored. The models of metrics are expected in models/NAME.
Printed is the mean of each metric, with its 95 % bootstrap interval over 6 images or more.

examples:
  eigencache score --reference full --images cached=images --prompts prompts.txt --out scores.csv

  with metrics that need no model:
  eigencache score --reference full --images a=images-a b=images-b --prompts prompts.txt \\
      --metrics psnr ssim --out scores.csv
"""

import argparse
from pathlib import Path

from eigencache._files import replacing
from eigencache.commands._common import check_file, named
from eigencache.commands._flags import at_least
from eigencache.commands.prompts import read_prompts
from eigencache.metrics import METRICS
from eigencache.metrics.folders import model_folders, pair, score_folders, summary

DEFAULT = ("psnr", "ssim", "st_lpips_alex", "clip_score")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folders, the prompts, the metrics and where to write the scores."""
    parser.add_argument("--reference", required=True, metavar="DIR", help="images to compare with")
    parser.add_argument(
        "--images", required=True, nargs="+", action="extend", metavar="NAME=DIR",
        help="a name and the folder to score under it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--prompts", required=True, metavar="FILE", help="as for `sample`")
    parser.add_argument(
        "--num-prompts", type=at_least(1), metavar="N", help="as for `sample`; by default all"
    )
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
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads; by default 1")
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
    check_file(Path(arguments.out))
    folders = named(arguments.images, "--images", "NAME=DIR")
    models = named(arguments.model, "--model", "NAME=DIR")
    prompts = read_prompts(arguments.prompts, arguments.num_prompts)
    records = pair(arguments.reference, folders, prompts)
    needed = model_folders(arguments.metrics, arguments.clip, models)

    import torch  # not before everything that can be wrong is checked

    torch.set_num_threads(arguments.threads)
    scores, of_sets = score_folders(records, needed)
    written = {arguments.out: scores}
    if of_sets is not None:
        written[f"{Path(arguments.out).with_suffix('')}-sets.csv"] = of_sets
    for path, table in written.items():
        with replacing(path) as part:
            table.to_csv(part, index=False)
    print(summary(scores))
    if of_sets is not None:
        print(of_sets.to_string(index=False))

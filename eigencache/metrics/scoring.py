"""The scores of images: each against reference images, and against its prompt.

An image is loaded once, together with the images of the same prompt that it is compared with. A
video's frames are each compared with the same frame of the reference; its score is their mean, but
for PSNR, which is that of all frames together (`eigencache.metrics.pooled`).
"""

from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from eigencache._frames import frames_of
from eigencache.metrics import METRICS
from eigencache.metrics.images import load_image
from eigencache.metrics.scorers import Scorers


def score_records(
    records: pd.DataFrame, references: pd.DataFrame, scorers: Scorers
) -> pd.DataFrame:
    """Return the scores of images.

    Args:
        records: of the images to score: run, prompt_index, prompt, seed, image.
        references: of the images to compare them with, from one or several runs; same columns.
        scorers: the metrics.

    Returns:
        `run, prompt_index, reference` and one column per metric, one row per image and reference,
        in the order of the records and of the references. A metric that is not paired has the same
        value for every reference.

    Raises:
        ValueError: a prompt has no image in a reference, or another prompt's or noise's.
    """
    names = list(dict.fromkeys(references["run"]))
    known = references.set_index(["run", "prompt_index"])
    for name in names:
        strangers = set(records["prompt_index"]) - set(known.loc[name].index)
        if strangers:
            raise ValueError(f"{name}: no reference image of prompts {sorted(strangers)}")
    rows = []
    for row in tqdm(records.to_dict("records"), desc="score", unit="image"):
        others = {name: known.loc[name, row["prompt_index"]] for name in names}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for other in others.values():
            if other["prompt"] != row["prompt"] or other["seed"] != row["seed"]:
                raise ValueError(
                    f"{row['image']} and {other['image']}: their prompts or noise differ"
                )
        frames = frames_of(row["image"])
        for position, frame in enumerate(frames):
            image, unpaired = load_image(frame), dict[str, float]()
            for name, other in others.items():
                theirs = frames_of(other["image"])
                if len(theirs) != len(frames):
                    raise ValueError(
                        f"{row['image']} and {other['image']}: {len(frames)} and {len(theirs)} "
                        "frames"
                    )
                same = theirs[position] == frame
                reference = image if same else load_image(theirs[position])
                if reference.shape != image.shape:
                    raise ValueError(f"{row['image']} and {other['image']}: sizes differ")
                for metric, score in scorers.images.items():
                    if METRICS[metric].paired or metric not in unpaired:
                        unpaired[metric] = score(reference, image, row["prompt"])
                    found[name].setdefault(metric, []).append(unpaired[metric])
        for name in names:
            scores: dict[str, Any] = {k: row[k] for k in ("run", "prompt_index")}
            scores["reference"] = name
            rows.append(scores | {m: METRICS[m].over_frames(v) for m, v in found[name].items()})
    return pd.DataFrame(rows)


def features_of(records: pd.DataFrame, scorers: Scorers) -> dict[str, np.ndarray]:
    """Return the features of runs for metrics of a set, as `eigencache.metrics.sets` takes them.

    Args:
        records: of their images: run, image.
        scorers: the metrics.
    """
    found = {}
    for name, metric in scorers.sets.items():
        for run, rows in records.groupby("run", sort=False):
            frames = [frame for image in rows["image"] for frame in frames_of(image)]
            found[f"{name}/{run}"] = np.stack(
                [metric.features(load_image(f)) for f in tqdm(frames, desc=name, delay=5)]
            )
    return found

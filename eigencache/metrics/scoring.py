"""The scores of images: each against reference images, and against its prompt.

An image is loaded once, together with the images of the same prompt that it is compared with. A
video's scores are means over its frames, each compared with the same frame of the reference.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eigencache._frames import frames_of
from eigencache.metrics import METRICS
from eigencache.metrics.images import load_image
from eigencache.metrics.scorers import Scorers


def score_records(
    records: pd.DataFrame, references: pd.DataFrame, scorers: Scorers
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of images and of sets of images.

    Args:
        records: of the images to score: run, prompt_index, prompt, seed, image.
        references: of the images to compare them with, from one or several runs; same columns.
        scorers: the metrics.

    Returns:
        The scores of images: `run, prompt_index, reference` and one column per metric, one row per
        image and reference, in the order of the records and of the references. And the scores of
        sets: `run, reference` and one column per metric. A metric that is not paired has the same
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
    rows, features = [], _Features(scorers)
    for row in tqdm(records.to_dict("records"), desc="score", unit="image"):
        others = {name: known.loc[name, row["prompt_index"]] for name in names}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for other in others.values():
            if other["prompt"] != row["prompt"] or other["seed"] != row["seed"]:
                raise ValueError(f"{row['image']} and {other['image']}: prompt or noise differ")
        frames = frames_of(row["image"])
        for position, frame in enumerate(frames):
            image, unpaired = load_image(frame), dict[str, float]()
            features.add(row["run"], str(frame), image)
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
                features.add_pair(row["run"], name, str(theirs[position]), reference)
        for name in names:
            scores: dict[str, Any] = {k: row[k] for k in ("run", "prompt_index")}
            means = {metric: float(np.mean(values)) for metric, values in found[name].items()}
            rows.append({**scores, "reference": name, **means})
    return pd.DataFrame(rows), features.table()


class _Features:
    """The features of the images so far, for metrics of a set; each is computed once."""

    def __init__(self, scorers: Scorers):
        self.sets = scorers.sets
        self.known: dict[tuple[str, str], np.ndarray] = {}
        self.runs: dict[str, list[str]] = {}
        self.pairs: dict[tuple[str, str], list[str]] = {}

    def add(self, run: str, path: str, image: torch.Tensor) -> None:
        self.runs.setdefault(run, []).append(path)
        self._look(path, image)

    def add_pair(self, run: str, reference: str, path: str, image: torch.Tensor) -> None:
        self.pairs.setdefault((run, reference), []).append(path)
        self._look(path, image)

    def table(self) -> pd.DataFrame:
        """Return `run, reference` and one column per metric."""
        rows = []
        for (run_, reference), paths in self.pairs.items():
            row: dict[str, Any] = {"run": run_, "reference": reference}
            for name, metric in self.sets.items():
                ours, theirs = (
                    np.stack([self.known[name, path] for path in of])
                    for of in (self.runs[run_], paths)
                )
                row[name] = metric.distance(theirs, ours)
            rows.append(row)
        return pd.DataFrame(rows)

    def _look(self, path: str, image: torch.Tensor) -> None:
        for name, metric in self.sets.items():
            if (name, path) not in self.known:
                self.known[name, path] = metric.features(image)

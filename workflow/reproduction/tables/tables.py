"""Tidy tables: CSV files that stages write and other stages and figures read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from eigencache._files import replacing
from eigencache._frames import frames_of, hash_of_frames

# The columns that hold names and texts, whatever these look like.
TEXTS = {
    name: str
    for name in ("method", "run", "reference", "baseline", "label", "factor", "prompt",
                 "sha256", "shard")
}  # fmt: skip


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Return a CSV file that a stage wrote; only an empty cell is a missing value.

    A prompt may well be "None" or "NA", which pandas would take for missing by itself, and a label
    "007", which it would take for a number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table; the message names it.
    """
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=TEXTS)
    except ValueError as error:
        raise ValueError(f"{path}: not a table ({error}); delete it and run again") from error


def write_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as CSV, whole or not at all."""
    with replacing(path) as part:
        table.to_csv(part, index=False)


def altered_images(records: pd.DataFrame) -> Iterator[str]:
    """Yield what is wrong with each of those images that is missing or is not the recorded one.

    What is to be deleted is the folder of the images of the shard, RUN/INDEX.png in it, since what
    shows images asks for that folder: Snakemake does not miss the records, of which the tables have
    been made already.

    Args:
        records: with `image` and `sha256`.
    """
    for image, digest in zip(records["image"].map(str), records["sha256"], strict=True):
        if not Path(image).exists() or hash_of_frames(image) != digest:
            yield (
                f"{image}: missing or altered since it was sampled; delete the folder "
                f"{Path(image).parent.parent} and run again"
            )


def refuse_altered(records: pd.DataFrame) -> None:
    """Raise a ValueError if an image is missing or is not the one that was recorded.

    Args:
        records: with `image` and `sha256`.
    """
    for fault in altered_images(records):
        raise ValueError(fault)


def still_of(path: str | os.PathLike) -> Path:
    """Return the file of an image, or of a video's middle frame, which stands for it in figures.

    The first would show nothing of how methods differ where it is an image that was given.
    """
    frames = frames_of(path)
    return frames[len(frames) // 2]

"""Tidy tables: CSV files that stages write and other stages and figures read."""

import os

import pandas as pd

from eigencache.files import replacing


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Return a CSV file that a stage wrote; only an empty cell is a missing value.

    A prompt may well be "None" or "NA", which pandas would take for missing by itself.
    """
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def write_table(table: pd.DataFrame, path: str | os.PathLike) -> None:
    """Write a table as CSV, whole or not at all."""
    with replacing(path) as part:
        table.to_csv(part, index=False)

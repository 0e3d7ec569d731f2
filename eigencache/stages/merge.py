"""Merge: join the shards of one method, after checking that nothing is missing or damaged."""

import argparse
from pathlib import Path

import pandas as pd

from eigencache.files import sha256
from eigencache.stages import run
from eigencache.tables import read_table, write_table


class MergeError(ValueError):
    """The shards of a run have a gap, a duplicate, or an image that is not the recorded one."""


def merge(shards: list[str], count: int) -> pd.DataFrame:
    """Return the records of all shards, ordered by run and prompt index.

    Args:
        shards: record files of `eigencache.stages.sample`.
        count: the number of prompts; every run must have each index from 0 to count - 1 once.

    Raises:
        MergeError: a record is missing or doubled, or an image is missing or altered; the message
            names it and says what to delete, so that the next run makes it again.
    """
    records = pd.concat([read_table(path).assign(shard=path) for path in shards])
    for name, rows in records.groupby("run", sort=False):
        indices = rows["prompt_index"]
        doubled = sorted(set(indices[indices.duplicated()]))
        if doubled:
            raise MergeError(f"run {name}: prompts {doubled} occur more than once in {shards}")
        missing = sorted(set(range(count)) - set(indices))
        if missing:
            raise MergeError(f"run {name}: prompts {missing} are in none of {shards}")
        surplus = sorted(set(indices) - set(range(count)))
        if surplus:
            raise MergeError(
                f"run {name}: prompts {surplus} are not among the {count} of this experiment"
            )
    for row in records.itertuples():
        if not Path(row.image).is_file() or sha256(row.image) != row.sha256:
            raise MergeError(
                f"{row.image}: missing or altered since it was sampled; delete {row.shard} and run "
                "again"
            )
    return records.drop(columns="shard").sort_values(["run", "prompt_index"], kind="stable")


def main(arguments: argparse.Namespace) -> None:
    write_table(merge(arguments.shards, arguments.count), arguments.records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("merge", description=__doc__)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--count", type=int, required=True, help="the number of prompts")
    parser.add_argument("--records", required=True, help="CSV to write")
    run(main, parser)

"""Merge: join the shards of one method, after checking that nothing is missing or damaged."""

import argparse
import json
from collections.abc import Mapping

import pandas as pd

from reproduction.provenance import manifest
from reproduction.tables.tables import read_table, refuse_altered, write_table

# The columns that the workflow reads from every shard.
COLUMNS = {"run", "method", "prompt_index", "image", "sha256"}


class MergeError(ValueError):
    """The shards of a run have a gap, a duplicate, or records of another configuration."""


def merge(shards: list[str], label: str, count: int) -> pd.DataFrame:
    """Return the records of a method in all shards, ordered by run and prompt index.

    Args:
        shards: record files of `reproduction.stages.sample`, which may hold other methods too.
        label: of the method.
        count: the number of prompts; every run must have each index from 0 to count - 1 once.

    Raises:
        MergeError: a record is missing or doubled; the message names it and the shards.
        ValueError: an image is missing or altered.
    """
    tables = {path: read_table(path).assign(shard=path) for path in shards}
    for path, table in tables.items():
        if not set(table.columns) >= COLUMNS:
            raise MergeError(f"{path}: no records of images; delete it and run again")
    records = pd.concat(tables.values())
    records = records[records["method"] == label]
    if records.empty:
        raise MergeError(f"{label} is in none of {shards}; delete these and run again")
    for name, rows in records.groupby("run", sort=False):
        indices = rows["prompt_index"]
        doubled = rows[indices.duplicated(keep=False)]
        if len(doubled):
            raise MergeError(
                f"run {name}: prompts {sorted(set(doubled['prompt_index']))} occur more than once, "
                f"in {sorted(set(doubled['shard']))}; delete these and run again"
            )
        missing = sorted(set(range(count)) - set(indices))
        if missing:
            raise MergeError(
                f"run {name}: prompts {missing} are in none of {shards}; delete the one that "
                "should hold them and run again"
            )
        surplus = rows[~indices.isin(range(count))]
        if len(surplus):
            raise MergeError(
                f"run {name}: prompts {sorted(set(surplus['prompt_index']))} of "
                f"{sorted(set(surplus['shard']))} are not among the {count} of this experiment; "
                "delete these and run again"
            )
    refuse_altered(records)
    return records.sort_values(["run", "prompt_index"], kind="stable")


def refuse_strangers(shards: Mapping[str, manifest.Manifest], wanted: Mapping) -> None:
    """Raise a MergeError if a shard was sampled under another configuration.

    Args:
        shards: path of a shard to its manifest (`reproduction.provenance.manifest.check`).
        wanted: settings of the sampling that every shard must have. In the others, but for which
            shard it is, and in the code and the files that they were made from, the shards must
            agree, and those files must be the ones that are there now.
    """
    first, *_ = shards
    for path, about in shards.items():
        if not about["stage"].endswith(".sample"):
            raise MergeError(f"{path}: made by {about['stage']}, not sampled")
        stated = {name: about["settings"].get(name) for name in wanted}
        _compare(path, stated, wanted, "the configuration")
        _compare(path, _common(about), _common(shards[first]), first)
        for source in manifest.changed(about):
            raise MergeError(
                f"{path}: sampled with another {source} than the one there is now; delete {path} "
                "and run again"
            )


def _common(about: Mapping) -> dict:
    """Return the facts in which all shards of a method must agree."""
    own = ("shard", "images")
    settings = {name: value for name, value in about["settings"].items() if name not in own}
    files = about["inputs"] | about["sources"] | about["models"]
    return settings | files | {"the code of sampling": about["code"]}


def _compare(path: str, has: Mapping, wanted: Mapping, whose: str) -> None:
    for name in sorted({*has, *wanted}):
        if has.get(name) != wanted.get(name):
            raise MergeError(
                f"{path}: from another configuration: {name} is {has.get(name)!r}, and "
                f"{wanted.get(name)!r} in {whose}; delete {path} and run again"
            )


def main(arguments: argparse.Namespace) -> None:
    shards = {path: manifest.read(path) for path in arguments.shards}
    refuse_strangers(shards, json.loads(arguments.settings))
    write_table(merge(arguments.shards, arguments.label, arguments.count), arguments.records)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("merge", description=__doc__)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--label", required=True, help="what the method is called")
    parser.add_argument("--count", type=int, required=True, help="the number of prompts")
    parser.add_argument(
        "--settings", required=True, help="of the sampling, which every shard must have, as JSON"
    )
    parser.add_argument("--records", required=True, help="CSV to write")
    run(main, parser, outputs=["records"], inputs=["shards"])

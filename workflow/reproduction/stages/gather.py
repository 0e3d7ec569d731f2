"""Gather: join the scores of a method's shards, and compute its metrics of whole sets."""

import argparse

import pandas as pd

from eigencache._files import read_arrays
from eigencache.metrics.sets import FORMAT, Features, joined, score_sets
from reproduction.tables.tables import read_table, write_table


def gather(shards: list[pd.DataFrame], runs: list[str]) -> pd.DataFrame:
    """Return the scores of some runs, ordered by run and prompt index.

    Args:
        shards: from `reproduction.stages.score`, which may be of other runs too.
        runs: their names.
    """
    scores = pd.concat(shards)
    return scores[scores["run"].isin(runs)].sort_values(["run", "prompt_index"], kind="stable")


def main(arguments: argparse.Namespace) -> None:
    runs = list(dict.fromkeys(read_table(arguments.records)["run"]))
    write_table(gather(list(map(read_table, arguments.shards)), runs), arguments.scores)
    if arguments.sets:
        features, references = map(_features, (arguments.features, arguments.reference_features))
        write_table(score_sets(features, references, runs, arguments.references), arguments.sets)


def _features(paths: list[str]) -> Features:
    return joined([read_arrays(path, FORMAT, ValueError)[0] for path in paths])


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("gather", description=__doc__)
    parser.add_argument("--shards", nargs="+", required=True, help="of scores, in their order")
    parser.add_argument("--records", required=True, help="of the method")
    parser.add_argument("--references", nargs="+", required=True, help="runs compared with")
    parser.add_argument("--features", nargs="*", default=[], help="of the shards, in their order")
    parser.add_argument("--reference-features", nargs="*", default=[], help="what has theirs")
    parser.add_argument("--scores", required=True, help="CSV, one row per image and reference")
    parser.add_argument("--sets", nargs="?", help="CSV, one row per run and reference")
    run(
        main, parser, outputs=["scores", "sets"],
        inputs=["shards", "records", "features", "reference_features"],
    )  # fmt: skip

"""Score: measure every image of a shard against reference runs and against its prompt."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from eigencache._device import default_device
from eigencache._files import write_arrays
from eigencache.metrics.scorers import Scorers
from eigencache.metrics.scoring import features_of, score_records
from eigencache.metrics.sets import FORMAT
from reproduction.models.check import verified
from reproduction.tables.tables import read_table, refuse_altered, write_table


def choose_references(records: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """Return the records of these runs, in the order of the names.

    Raises:
        ValueError: there is no such run.
    """
    found = dict(tuple(pd.concat(records).groupby("run")))
    for name in names:
        if name not in found:
            raise ValueError(f"no run {name!r} to be the reference; there are {list(found)}")
    return pd.concat([found[name] for name in names])


def main(arguments: argparse.Namespace) -> dict:
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # scores are of float32, not of less
    tables = {path: read_table(path) for path in (arguments.records, *arguments.reference_records)}
    records = tables[arguments.records].sort_values(["run", "prompt_index"], kind="stable")
    references = choose_references(
        [tables[path] for path in arguments.reference_records], arguments.references
    )
    refuse_altered(pd.concat([records, references]))
    manifests = json.loads(arguments.metrics)
    folders = {name: [verified(path) for path in paths] for name, paths in manifests.items()}
    scorers = Scorers(folders, default_device())
    write_table(score_records(records, references, scorers), arguments.scores)
    if arguments.features:
        write_arrays(arguments.features, features_of(records, scorers), FORMAT, {})
    return {
        "metrics": {
            name: about | {"weights": {path: _hashes(path) for path in manifests[name]}}
            for name, about in scorers.about.items()
        }
    }


def _hashes(manifest: str) -> dict[str, str]:
    files = json.loads(Path(manifest).read_bytes())
    return {file: facts["sha256"] for file, facts in files.items()}


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("score", description=__doc__)
    parser.add_argument("--records", required=True)
    parser.add_argument("--references", nargs="+", required=True, help="runs to compare with")
    parser.add_argument("--reference-records", nargs="+", required=True, help="what has them")
    parser.add_argument(
        "--metrics", required=True, help="JSON: a metric to the manifests of the models it needs"
    )
    parser.add_argument("--models", nargs="*", default=[], help="all of those manifests")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--scores", required=True, help="CSV to write, one row an image and reference"
    )
    parser.add_argument("--features", nargs="?", help="file to write, for metrics of whole sets")
    run(
        main, parser, outputs=["scores", "features"], inputs=["records", "reference_records"],
        models=["models"],
    )  # fmt: skip

"""Timings: print where the time of the jobs went, from Snakemake's benchmark files."""

import argparse
from pathlib import Path

import pandas as pd


def timings(files: list[Path]) -> pd.DataFrame:
    """Return one row per rule: the number of jobs, their total seconds, the largest memory.

    Args:
        files: `RULE.tsv` or `RULE-WHAT.tsv`, as `benchmark:` writes them; one at least.
    """
    jobs = pd.concat([pd.read_csv(f, sep="\t").assign(rule=f.stem.split("-")[0]) for f in files])
    jobs["max_rss"] = pd.to_numeric(jobs["max_rss"], errors="coerce")
    return jobs.groupby("rule").agg(jobs=("s", "size"), seconds=("s", "sum"), mb=("max_rss", "max"))


def main(arguments: argparse.Namespace) -> None:
    files = sorted(Path(arguments.folder).glob("*.tsv"))
    if not files:
        return  # only jobs that are not timed have run so far
    table = timings(files).sort_values("seconds", ascending=False)
    print("Seconds of all jobs together, and the largest memory of one, by rule:")
    print(table.to_string(float_format="{:.0f}".format, na_rep="-"))


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("timings", description=__doc__)
    parser.add_argument("folder")
    run(main, parser)

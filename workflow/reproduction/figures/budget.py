"""Budget: image quality against the number of full steps, one panel per metric.

One line per method. The figure is like `reproduction.figures.pareto`, with the same methods and
looks, but with full steps in place of the measured speed-up: it shows what the forecasts are worth,
whatever they cost. At each number of steps the best method is the one on the better side. Baselines
that only take fewer steps compute all of them in full.
"""

import argparse

from reproduction.figures import pareto
from reproduction.figures._common import save
from reproduction.tables.tables import read_table


def main(arguments: argparse.Namespace) -> None:
    summary = read_table(arguments.summary)
    save(pareto.draw(summary, arguments.highlight, "full_steps"), arguments.out)


if __name__ == "__main__":
    from reproduction.program import run

    parser = argparse.ArgumentParser("budget", description=__doc__)
    parser.add_argument("--summary", required=True, help="CSV of reproduction.stages.table")
    parser.add_argument("--highlight", nargs="*", default=[], help="methods to be in colour")
    parser.add_argument("--out", nargs="+", required=True, help="PDF and PNG files to write")
    run(main, parser, outputs=["out"], inputs=["summary"])

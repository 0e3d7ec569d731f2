"""Check results of the workflow again against their manifests.

Every result X of the workflow has a manifest X.json beside it, with hashes of the result and of all
that it was made from. Faults are printed, a line each, and the exit status is 1 if there are any.
"""

import argparse
import sys

EXAMPLES = """\
examples:
  eigencache verify results figures
  eigencache verify results/emoji-flux/summary.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is to be checked to the command line."""
    parser.add_argument(
        "places", nargs="+", metavar="PATH", help="a result, or a folder of results and others"
    )


def run(arguments: argparse.Namespace) -> None:
    """Check, print every fault and what was checked, and exit with 1 if there is a fault."""
    from eigencache.verify import verify

    report = verify(arguments.places)
    for fault in report.faults:
        print(fault)
    print(
        f"checked {report.results} results, {len(report.images)} images, {report.models} models; "
        f"{len(report.absent)} files that they were made from are not here; "
        f"{len(report.faults)} faults"
    )
    if report.faults:
        # Snakemake does not miss an intermediate file as long as all that is made of it is there.
        print("`snakemake FILE` makes a deleted file again, the next run what depends on it")
    sys.exit(bool(report.faults))

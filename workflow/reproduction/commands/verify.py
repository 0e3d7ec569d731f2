"""Check results of the workflow again against their manifests.

Every result X of the workflow has a manifest X.json beside it, with hashes of the result and of all
that it was made from. Faults are printed, a line each, and the exit status is 1 if there are any.
"""

import argparse
import sys

from reproduction.provenance.verify import verify

EXAMPLES = """\
examples, in the project's folder:
  PYTHONPATH=workflow python -m reproduction.commands.verify results figures
  PYTHONPATH=workflow python -m reproduction.commands.verify results/emoji-flux/summary.csv
"""


def main() -> None:
    """Check, print every fault and what was checked, and exit with 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        "verify", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "places", nargs="+", metavar="PATH", help="a result, or a folder of results and others"
    )
    try:
        report = verify(parser.parse_args().places)
    except (ValueError, OSError) as error:
        sys.exit(f"verify: {type(error).__name__}: {' '.join(str(error).split())}")
    for fault in report.faults:
        print(fault)
    print(
        f"checked {report.results} results, {len(report.images)} images, {report.models} models; "
        f"{len(report.absent)} files that they were made from are not here; "
        f"{len(report.faults)} faults"
    )
    if report.faults:
        # Snakemake does not miss what it made others from, as long as those are there.
        print(
            "`snakemake PATH` makes a deleted file or folder again, the next run what depends on it"
        )
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()

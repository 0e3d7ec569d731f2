"""The command `eigencache`, also `python -m eigencache.cli`."""

import argparse
import sys

from eigencache import folders


def main() -> None:
    """Run the subcommand that the command line states; the exit status is 0, or 1 on faults."""
    parser = argparse.ArgumentParser("eigencache")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("verify", help="check results again against their manifests")
    command.add_argument(
        "places", nargs="+", metavar="PATH", help="a result, or a folder of results and others"
    )
    command.set_defaults(run=_verify)
    folders.add_arguments(commands.add_parser("score", help="score folders of images"))
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"eigencache: {type(error).__name__}: {error}")


def _verify(arguments: argparse.Namespace) -> None:
    from eigencache.verify import verify  # pandas, which other commands need not wait for

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


if __name__ == "__main__":
    main()

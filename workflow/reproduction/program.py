"""How stages and figures are started: their command line, and a manifest beside every result.

Programs import this under `if __name__ == "__main__"` alone: how a result is recorded does not
change it, so an edit here, or of manifests, runs no stage again (`reproduction.provenance.code`).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from reproduction.provenance import record


def run(
    main: Callable[[argparse.Namespace], Mapping | None],
    parser: argparse.ArgumentParser,
    outputs: Sequence[str] = (),
    inputs: Sequence[str] = (),
    sources: Sequence[str] = (),
    models: Sequence[str] = (),
) -> None:
    """Parse the command line and run a stage; end with one plain line if its input is at fault.

    Args:
        main: the stage. What it returns, if anything, goes into the manifests of its outputs.
        parser: of its command line.
        outputs: the names of the arguments that are files to write; each is given a manifest.
        inputs: of those that are results of earlier stages, which are checked first.
        sources: of those that are other files to read, such as prompts.
        models: of those that are manifests of models, whose files the stage checks.
    """
    arguments = parser.parse_args()
    try:
        shared = outputs and record.begin(
            main, arguments, outputs=outputs, inputs=inputs, sources=sources, models=models
        )
        said = main(arguments) or {}
        for path in record.paths(arguments, outputs):
            record.write(path, {**shared, **said})
    except (ValueError, OSError) as error:
        stage = parser.prog.removesuffix(".py")
        sys.exit(f"eigencache {stage}: {type(error).__name__}: {error}")

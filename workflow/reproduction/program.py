"""How stages and figures are started: their command line, and a manifest for every result.

Programs import this only under `if __name__ == "__main__"`: how a result is recorded does not
change it, so an edit here, or of manifests, does not run any stage again
(`reproduction.provenance.code`).
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
    """Parse the command line and run a stage; if its input is faulty, exit with one plain line.

    Args:
        main: the stage. What it returns, if anything, goes into the manifests of its outputs.
        parser: of its command line.
        outputs: the names of the arguments that are files to write; each file gets a manifest.
        inputs: names of arguments that are results of earlier stages, which are checked first.
        sources: names of arguments that are other files to read, such as prompts.
        models: names of arguments that are manifests of models, whose files the stage checks.
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

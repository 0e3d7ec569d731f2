"""The workflow's stages: one module each, run as `python -m eigencache.stages.NAME`.

A stage reads files that earlier stages wrote and writes its own, whole or not at all.
"""

import argparse
import sys
from collections.abc import Callable


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run a stage; end with one plain line if its input is at fault."""
    arguments = parser.parse_args()
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        stage = parser.prog.removesuffix(".py")
        sys.exit(f"eigencache {stage}: {type(error).__name__}: {error}")

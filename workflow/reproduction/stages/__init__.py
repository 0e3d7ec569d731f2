"""The workflow's stages: one module each, run as `python -m reproduction.stages.NAME`.

A stage reads files that earlier stages wrote and writes its own, whole or not at all, each with a
manifest beside it (`reproduction.provenance.manifest`).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from reproduction.provenance import manifest

# What the stages that load a model say of their option.
LOW_MEMORY = "1: the transformer and the VAE take turns on the device"


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
        shared = outputs and manifest.begin(
            main, arguments, outputs=outputs, inputs=inputs, sources=sources, models=models
        )
        said = main(arguments) or {}
        for path in manifest.paths(arguments, outputs):
            manifest.write(path, {**shared, **said})
    except (ValueError, OSError) as error:
        stage = parser.prog.removesuffix(".py")
        sys.exit(f"eigencache {stage}: {type(error).__name__}: {error}")

"""Accelerate diffusion pipelines: forecast most sampler steps.

From a model to images, every command on its own:

  eigencache calibrate --model MODEL --prompts calibration.txt --out kernel.safetensors
  eigencache plan --kernel kernel.safetensors --full-steps 9 --out plan.safetensors
  eigencache sample --model MODEL --prompts prompts.txt --plan plan.safetensors --out images

A method that needs no kernel, in one line:

  eigencache sample --model MODEL --prompts prompts.txt --method FORA --interval 5 --out images

MODEL is the folder of a diffusers pipeline, or its id on the Hugging Face hub.

`eigencache COMMAND --help` explains each command. In Python, use eigencache.calibrate and
eigencache.cached.
"""

import argparse
import importlib
import sys
from types import ModuleType

from eigencache import __version__

# Each is a module of `eigencache.commands`, which says what it must have. That of `score` is one of
# the metrics, which the core does not import.
COMMANDS = ("calibrate", "plan", "sample", "score", "show", "card", "push", "export")
ELSEWHERE = {"score": "eigencache.metrics.command"}


def module_of(command: str) -> ModuleType:
    """Return the module of a subcommand."""
    return importlib.import_module(ELSEWHERE.get(command, f"eigencache.commands.{command}"))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; `run` of what it returns is the subcommand.

    What `--help` says stands in the docstrings of this module and of the subcommands'.
    """
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "eigencache", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"eigencache {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = module_of(name)
        told, head, examples = (module.__doc__ or "").partition("examples:\n")
        command = commands.add_parser(
            name, help=told.partition("\n")[0], description=told, epilog=head + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main() -> None:
    """Run the subcommand that the command line states; the exit status is 0, or 1 on faults."""
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"eigencache: {type(error).__name__}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("eigencache: interrupted", file=sys.stderr)
        sys.exit(130)  # as shells have it


if __name__ == "__main__":
    main()

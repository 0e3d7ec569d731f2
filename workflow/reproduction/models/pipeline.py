"""The pipeline of an experiment: its command line, checks and loading, for every stage."""

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eigencache.calibration.sampler import check_arguments, load_pipeline, pipeline_class
from reproduction.models.check import verified

LOW_MEMORY = "1: the models of the pipeline take turns on the device"


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Add the pipeline of an experiment, and how it is called, to a stage's command line."""
    parser.add_argument("--model", required=True, help="the manifest of a fetched model")
    parser.add_argument("--pipeline", nargs="?", help="its class; by default the model's own")
    parser.add_argument(
        "--arguments", type=json.loads, required=True,
        help="of the pipeline's every call beside the prompt, as JSON",
    )  # fmt: skip
    parser.add_argument("--dtype", required=True, help="of weights and features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--low-memory", type=int, choices=(0, 1), default=0, help=LOW_MEMORY)


def loaded(arguments: argparse.Namespace, calls: Sequence[dict[str, Any]]) -> Any:
    """Return the pipeline of a stage, ready to be called.

    Its arguments are checked first, and then its files against their manifest.

    Args:
        arguments: of a command line with `add_pipeline`.
        calls: the arguments that are each call's own.

    Raises:
        ValueError: the pipeline takes no such argument, or no such value of one, or has no such
            class.
        FetchError: a file is missing, truncated or altered.
    """
    torch.set_num_threads(arguments.threads)
    kind = pipeline_class(Path(arguments.model).parent, arguments.pipeline)
    check_arguments(kind, calls, arguments.arguments)
    for call in (arguments.arguments, *calls):
        check_numbers(kind, call)
    return load_pipeline(
        verified(arguments.model), arguments.dtype, low_memory=bool(arguments.low_memory),
        pipeline=arguments.pipeline,
    )  # fmt: skip


def check_numbers(kind: type, call: Mapping[str, Any]) -> None:
    """Raise a ValueError if an argument of a pipeline's call is a text and should be a number.

    Args:
        kind: the pipeline's class. A default that is a number says that the argument is one.
        call: arguments of its call.
    """
    parameters = inspect.signature(kind.__call__).parameters
    for name, value in call.items():
        default = parameters[name].default if name in parameters else None
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and isinstance(value, str):
            raise ValueError(
                f"{name}: {value!r} is no number, and {kind.__name__} takes one (by default "
                f"{default}); correct it under `arguments` in the configuration, or in the prompts"
            )

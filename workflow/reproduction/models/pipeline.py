"""The pipeline of an experiment: its command line, checks and loading, for every stage."""

import argparse
import json
from collections.abc import Sequence
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
        ValueError: the pipeline takes no such argument, or has no such class.
        FetchError: a file is missing, truncated or altered.
    """
    torch.set_num_threads(arguments.threads)
    kind = pipeline_class(Path(arguments.model).parent, arguments.pipeline)
    check_arguments(kind, calls, arguments.arguments)
    return load_pipeline(
        verified(arguments.model), arguments.dtype, low_memory=bool(arguments.low_memory),
        pipeline=arguments.pipeline,
    )  # fmt: skip

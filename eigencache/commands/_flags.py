"""Flags that several subcommands share: the model, how it is called, the method and its options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def at_least(low: int, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """Return the `type` of a flag whose number must not be below `low`."""

    def number(text: str) -> Any:
        value = kind(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
        return value

    number.__name__ = kind.__name__  # argparse says "invalid int value"
    return number


# Short flags for what many pipelines take: flag, argument of the call, type, help.
SHORT = (
    ("--steps", "num_inference_steps", at_least(1), "sampler steps of an image"),
    ("--height", "height", at_least(1), "height of images in pixels"),
    ("--width", "width", at_least(1), "width of images in pixels"),
    ("--guidance-scale", "guidance_scale", at_least(0, float), "scale of the pipeline's guidance"),
    (
        "--max-sequence-length", "max_sequence_length", at_least(1),
        "most tokens for the long text encoder",
    ),
)  # fmt: skip


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the model, its prompts and how it is run to a command line."""
    parser.add_argument(
        "--model", metavar="MODEL", required=required,
        help="folder of a diffusers pipeline, or its id on the Hugging Face hub, such as "
        "black-forest-labs/FLUX.1-dev",
    )  # fmt: skip
    parser.add_argument(
        "--pipeline", metavar="CLASS",
        help="diffusers class to build from the model's parts, such as FluxImg2ImgPipeline; by "
        "default the class that the model names",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", required=required,
        help="text file with one prompt per line; or .jsonl or .tsv, whose fields are arguments of "
        "the pipeline's call: prompt, negative_prompt, image (a path from the file's folder) ...",
    )  # fmt: skip
    parser.add_argument(
        "--num-prompts", type=at_least(1), metavar="N",
        help="use the first N prompts; by default all",
    )  # fmt: skip
    parser.add_argument(
        "--low-memory", action="store_true", help="the pipeline's models take turns on the GPU"
    )
    parser.add_argument(
        "--threads", type=at_least(1), metavar="N",
        help="CPU threads; changing the number may change the last bits of an image",
    )  # fmt: skip


def add_call(parser: argparse.ArgumentParser, default: str) -> None:
    """Add how the pipeline is called to a command line.

    Args:
        parser: of the command line.
        default: what holds where nothing is stated.
    """
    group = parser.add_argument_group("how the pipeline is called", f"By default {default}.")
    group.add_argument(
        "--arguments", metavar="JSON",
        help='further arguments of the call, such as \'{"true_cfg_scale": 4, "strength": 0.6}\'',
    )  # fmt: skip
    for flag, name, kind, told in SHORT:
        group.add_argument(flag, dest=name, type=kind, metavar="N", help=told)
    group.add_argument(
        "--dtype", choices=DTYPES,
        help="dtype of weights and features; by default bfloat16 on a GPU, float32 on a CPU",
    )  # fmt: skip


def add_method(parser: argparse.ArgumentParser, default: str | None = "EigenCache-design") -> None:
    """Add a method and its options to a command line."""
    told = "; by default %(default)s" if default else ""
    parser.add_argument(
        "--method", default=default, metavar="NAME",
        help="a method of eigencache.METHODS, such as EigenCache, EigenCache-design, TaylorSeer or "
        f"FORA{told}",
    )  # fmt: skip
    parser.add_argument(
        "--tap", metavar="TAP",
        help="where features are taken: output, hidden, blocks, delta or modules; by default the "
        "method's own",
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", dest="options",
        help="an option of the method, such as order=2; may be repeated",
    )  # fmt: skip

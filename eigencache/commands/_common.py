"""What several subcommands share: the model, its settings, the method and its options."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from eigencache.calibration.sampler import Settings

# Flag, attribute of `eigencache.calibration.sampler.Settings`, type, help.
SETTINGS = (
    ("--steps", "num_steps", int, "sampler steps of an image"),
    ("--height", "height", int, "of images in pixels"),
    ("--width", "width", int, "of images in pixels"),
    ("--guidance-scale", "guidance_scale", float, "of guidance-distilled models"),
    ("--max-sequence-length", "max_sequence_length", int, "tokens of the long text encoder"),
)
DTYPES = ("float32", "bfloat16", "float16")


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the model, its prompts and how it is run to a command line."""
    parser.add_argument(
        "--model", type=Path, metavar="DIR", required=required,
        help="folder of a FLUX pipeline of diffusers: it has a model_index.json",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", required=required, help="text file, a prompt a line"
    )
    parser.add_argument(
        "--num-prompts", type=int, metavar="N", help="use the first N prompts; by default all"
    )
    parser.add_argument(
        "--low-memory", action="store_true", help="transformer and VAE take turns on the GPU"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="CPU threads; another number may change an image's last bits",
    )  # fmt: skip


def add_settings(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the settings of a pipeline to a command line.

    Args:
        parser: of the command line.
        default: what holds where none is stated.
    """
    group = parser.add_argument_group("how the pipeline is called", f"By default {default}.")
    for flag, name, kind, told in SETTINGS:
        group.add_argument(flag, dest=name, type=kind, metavar="N", help=told)
    group.add_argument("--dtype", choices=DTYPES, help="of weights and features")


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add a method and its options to a command line."""
    parser.add_argument(
        "--method", default="EigenCache-design", metavar="NAME",
        help="of eigencache.METHODS, such as EigenCache, EigenCache-design, TaylorSeer or FORA; "
        "by default %(default)s",
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


def parsed_options(pairs: Iterable[str]) -> dict[str, object]:
    """Return options from NAME=VALUE; a value is read as JSON, or else is the text itself.

    Raises:
        ValueError: there is no `=`, or a name occurs twice.
    """
    options: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--option {pair}: write NAME=VALUE")
        if name in options:
            raise ValueError(f"--option {name}: stated twice")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def settings_from(arguments: argparse.Namespace, remembered: str | None = None) -> "Settings":
    """Return the settings of the command line, of a file where it states none, or defaults.

    Args:
        arguments: of a command line with `add_settings`.
        remembered: what a kernel or plan says of its settings, JSON; None if it says nothing.

    Raises:
        ValueError: a number is not above zero, or what is remembered cannot be read.
    """
    from eigencache.calibration.sampler import Settings, default_device

    if remembered is None:
        dtype = "bfloat16" if default_device() == "cuda" else "float32"
        settings = Settings(dtype=dtype)
    else:
        try:
            settings = Settings(**json.loads(remembered))
        except (TypeError, ValueError) as error:
            raise ValueError(f"its settings {remembered!r} cannot be read: {error}") from error
    names = [name for _, name, _, _ in SETTINGS]
    stated: dict[str, Any] = {name: getattr(arguments, name, None) for name in [*names, "dtype"]}
    for flag, name, _, _ in SETTINGS:
        value = stated[name]
        if value is not None and value <= 0:
            raise ValueError(f"{flag} must be above 0, got {value}")
    return replace(settings, **{k: v for k, v in stated.items() if v is not None})


def remembered_settings(source: Mapping[str, str]) -> str | None:
    """Return the settings that a kernel's or plan's `source` states, as JSON, or None."""
    from eigencache.calibration.recording import SETTINGS as KEY

    return source.get(KEY) or source.get(f"kernel {KEY}")


def prompts_of(arguments: argparse.Namespace) -> list[str]:
    """Return the prompts that a command line with `add_model` states.

    Raises:
        FileNotFoundError, ValueError: the file is missing or faulty.
    """
    from eigencache.commands.prompts import read_prompts

    if arguments.num_prompts is not None and arguments.num_prompts < 1:
        raise ValueError(f"--num-prompts must be at least 1, got {arguments.num_prompts}")
    return read_prompts(arguments.prompts, arguments.num_prompts)


def loaded(
    arguments: argparse.Namespace, prompts: list[str], settings: "Settings"
) -> "tuple[Any, list[dict[str, Tensor]]]":
    """Return the pipeline of the command line, and the embeddings of prompts.

    Raises:
        FileNotFoundError: there is no pipeline in the folder.
        OSError: one of its files is missing or unreadable.
        ValueError: the number of threads is not above zero.
    """
    import torch

    from eigencache.calibration.sampler import load_encoded

    if not (arguments.model / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{arguments.model}: not the folder of a diffusers pipeline; it has no model_index.json"
        )
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    return load_encoded(arguments.model, prompts, settings, arguments.low_memory)

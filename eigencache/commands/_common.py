"""What several subcommands make of their flags (`_flags.py`)."""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eigencache._checks import fixed
from eigencache.commands._flags import SHORT
from eigencache.commands.prompts import json_or_text, opened, read_calls
from eigencache.kernel import Kernel
from eigencache.plan import Plan

if TYPE_CHECKING:
    from eigencache.calibration import Calibration


def named(pairs: Iterable[str], flag: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Return the values that a flag states by name.

    Raises:
        ValueError: there is no `=`, or a name occurs twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{flag} {pair}: write {form}")
        if name in found:
            raise ValueError(f"{flag} {name}: stated twice")
        found[name] = value
    return found


def parsed_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Return a method's options from NAME=VALUE; a value is read as JSON, or is text.

    Raises:
        ValueError: as `named` says.
    """
    return {name: json_or_text(value) for name, value in named(pairs, "--option").items()}


class Calls:
    """How a command line calls a pipeline.

    Args:
        arguments: of a command line with `add_model`, and maybe `add_call`.
        made: a plan or kernel, whose arguments and dtype hold where the command line states none.

    Attributes:
        own: the arguments that are each call's own; images are named by their paths.
        shared: those of all calls.
        dtype: of weights; None for bfloat16 on a GPU and float32 on a CPU.

    Raises:
        FileNotFoundError, ValueError: the prompt file is missing or faulty, --arguments is no JSON
            object, or an argument is stated twice.
    """

    def __init__(self, arguments: argparse.Namespace, made: Plan | Kernel | None = None) -> None:
        self.arguments = arguments
        self.own = read_calls(arguments.prompts, arguments.num_prompts)
        held = fixed(made.arguments) if made else {}
        held = {k: v for k, v in held.items() if not all(k in call for call in self.own)}
        self.shared = {**held, **_stated(arguments)}
        dtype = getattr(arguments, "dtype", None)
        self.dtype = dtype or (made.source.get("dtype") if made else None)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return all arguments of a call, with its images read."""
        return {**self.shared, **opened(self.own[index])}

    def pipeline(self) -> Any:
        """Return the pipeline, after checking that it can be called so.

        Raises:
            OSError: there is no such model, or one of its files is missing or unreadable.
            ValueError: the pipeline takes no such argument.
        """
        import torch

        from eigencache._device import default_device
        from eigencache.calibration.sampler import check_arguments, load_pipeline, pipeline_class

        model, kind = self.arguments.model, self.arguments.pipeline
        if self.arguments.threads is not None:
            torch.set_num_threads(self.arguments.threads)
        check_arguments(pipeline_class(model, kind), self.own, self.shared)
        dtype = self.dtype or ("bfloat16" if default_device() == "cuda" else "float32")
        low_memory = self.arguments.low_memory
        return load_pipeline(model, dtype, low_memory=low_memory, pipeline=kind)

    def calibration(self, seed: int) -> "Calibration":
        """Return what plans are made on with these calls, and noise of a seed."""
        from eigencache.calibration import Calibration

        return Calibration(self.pipeline(), list(map(opened, self.own)), self.shared, seed)


def _stated(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of all calls that a command line states."""
    text = getattr(arguments, "arguments", None) or "{}"
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--arguments: not JSON: {error}: {text}") from error
    if not isinstance(stated, dict):
        raise ValueError(f'--arguments: write a JSON object, {{"NAME": VALUE}}, not {text}')
    for flag, name, _, _ in SHORT:
        value = getattr(arguments, name, None)
        if value is None:
            continue
        if name in stated:
            raise ValueError(f"{flag}: --arguments states {name} too")
        stated[name] = value
    return stated


def check_file(path: Path) -> None:
    """Raise an OSError if a file cannot be written there, before any work is done for it."""
    if path.is_dir():
        raise IsADirectoryError(f"--out {path}: it is a folder; name a file")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raise an OSError if files cannot be written into a folder, which need not be there yet."""
    there = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"--out: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--out: no permission to write into {there}")

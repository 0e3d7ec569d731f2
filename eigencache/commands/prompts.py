"""Prompt files: what a pipeline is called with for each image.

A text file has one prompt a line. A .jsonl or .tsv file has one call a line, and its fields are
arguments of the pipeline's call: `prompt`, `negative_prompt`, `image` ... A text in a field whose
name contains "image" is the path of an image, from the file's own folder. The first line of a .tsv
names the fields; an empty cell leaves its argument out.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def read_prompts(path: str | os.PathLike, count: int | None = None) -> list[str]:
    """Return the texts of the first `count` calls of a file (`text_of` each; all by default).

    Raises:
        FileNotFoundError, ValueError: as `read_calls` says.
    """
    return [text_of(call) for call in read_calls(path, count)]


def read_calls(path: str | os.PathLike, count: int | None = None) -> list[dict[str, Any]]:
    """Return the arguments of the first `count` calls of a UTF-8 file (all by default), in order.

    Images are named by their paths; `opened` reads them.

    Raises:
        FileNotFoundError: there is no such file, or no such image as it names.
        ValueError: a line is empty, malformed or occurs twice, or the file is not UTF-8 or has
            fewer than `count` calls.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a prompt file must be UTF-8: {error}") from error
    reader = {".jsonl": _json_lines, ".tsv": _table}.get(path.suffix, _lines)
    calls: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, call in reader(path, text):
        key = described(call)
        if key in seen:
            raise ValueError(f"{path}, line {number}: the same prompt as line {seen[key]}")
        seen[key] = number
        calls.append(_with_paths(path, number, call))
    if not calls:
        raise ValueError(f"{path}: no prompts; write one a line")
    if count is not None and count > len(calls):
        raise ValueError(f"{path}: {count} prompts were asked for, but it has {len(calls)}")
    return calls[:count]


def text_of(call: Mapping[str, Any]) -> str:
    """Return the prompt of a call; of a call without one, all its arguments."""
    prompt = call.get("prompt")
    return prompt if isinstance(prompt, str) else described(call)


def described(call: Mapping[str, Any]) -> str:
    """Return the arguments of a call in one line: the prompt, if it is the only one, or JSON."""
    return call["prompt"] if call.keys() == {"prompt"} else json.dumps(call, sort_keys=True)


def opened(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with its images read, as RGB of PIL, or with their alpha."""
    return _map_images(_open, call)


def _open(value: str | list[str]) -> Any:
    from PIL import Image

    if isinstance(value, list):
        return [_open(path) for path in value]
    with Image.open(value) as image:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _map_images(function: Callable[[Any], Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with `function` of the path, or list of paths, that each image is named by."""
    return {name: function(v) if is_image(name, v) else v for name, v in call.items()}


def is_image(name: str, value: Any) -> bool:
    """Return whether an argument of a call is the path of an image, or a list of such."""
    paths = value if isinstance(value, list) else [value]
    return "image" in name and bool(paths) and all(isinstance(path, str) for path in paths)


def _with_paths(file: Path, number: int, call: dict[str, Any]) -> dict[str, Any]:
    """Return a call whose images are named from the working folder; they must be there."""

    def found(path: Any) -> Any:
        if isinstance(path, list):
            return [found(each) for each in path]
        image = file.parent / path
        if not image.is_file():
            raise FileNotFoundError(f"{file}, line {number}: no such image: {image}")
        return image.as_posix()

    return _map_images(found, call)


def _lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{path}, line {number}: empty; write one prompt a line")
        yield number, {"prompt": line.strip()}


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            call = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(call, dict) or not call:
            raise ValueError(
                f'{path}, line {number}: write the arguments of one call, {{"prompt": "..."}}'
            )
        yield number, call


def _table(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(rows, [])
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path}, line 1: the names of the arguments must differ: {names}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number}: {len(row)} cells, line 1 names {len(names)}")
        call = {n: _value(n, cell.strip()) for n, cell in zip(names, row, strict=True) if cell}
        if not call:
            raise ValueError(f"{path}, line {number}: empty")
        yield number, call


def _value(name: str, cell: str) -> Any:
    """Return a cell's value: text in a prompt or an image's name, else what it is as JSON."""
    return cell if "prompt" in name or "image" in name else json_or_text(cell)


def json_or_text(text: str) -> Any:
    """Return what a text is as JSON, or the text itself if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text

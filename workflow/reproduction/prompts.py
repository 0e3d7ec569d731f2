"""Prompt sets by name, which prompts a job gets, and that calibration and evaluation share none."""

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigencache._files import replacing, sha256
from eigencache.commands.prompts import described, is_image, read_calls

SETS = "data/prompts/sets.tsv"
FETCHED = "data/prompts/fetched"


class PromptSetError(ValueError):
    """A prompt set cannot be fetched, or is not the one that the table pins; what to do is said."""


def prompt_sets(table: str = SETS) -> dict[str, dict[str, str]]:
    """Return the rows of the table of prompt sets, by their names.

    Its columns are name, source (an address), sha256 (of what is there), column (where the prompts
    are, if the source is a table), prompts (how many) and note.
    """
    if not Path(table).is_file():
        return {}
    with open(table, encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}


def file_of(prompts: str, table: str = SETS, folder: str = FETCHED) -> str:
    """Return the path of a prompt file: `prompts` itself, or that of the set of this name.

    A set is fetched when it is first named, from the address that the table has for it. Its
    prompts are written one a line to `{folder}/{name}.txt`.

    Args:
        prompts: a path, or a name of the table in any case.
        table: of prompt sets.
        folder: for what is fetched.

    Raises:
        PromptSetError: the set cannot be fetched, or is not what the table pins.
    """
    if Path(prompts).suffix or "/" in prompts or Path(prompts).is_file():
        return prompts
    sets = {name.lower(): row for name, row in prompt_sets(table).items()}
    if prompts.lower() not in sets:
        names = ", ".join(prompt_sets(table))
        raise PromptSetError(f"{prompts!r} is no file, and no prompt set of {table}: {names}")
    row = sets[prompts.lower()]
    target = Path(folder) / f"{row['name']}.txt"
    source = target.with_suffix(Path(row["source"]).suffix) if row["column"] else target
    if not source.is_file():
        data = _get(row, source)
        _check(row, hashlib.sha256(data).hexdigest(), table, row["source"])
        with replacing(source) as part:
            part.write_bytes(data)
    _check(row, sha256(source), table, f"{source}, which is fetched anew once you delete it,")
    if row["column"]:
        rows = csv.DictReader(io.StringIO(source.read_text("utf-8"), newline=""), delimiter="\t")
        text = "".join(f"{one[row['column']]}\n" for one in rows)
        if not target.is_file() or target.read_text("utf-8") != text:
            with replacing(target) as part:
                part.write_text(text, encoding="utf-8")
    return target.as_posix()


def _get(row: Mapping[str, str], target: Path) -> bytes:
    """Return what is at the address of a prompt set."""
    import httpx2

    try:
        got = httpx2.get(row["source"], follow_redirects=True, timeout=30)
        got.raise_for_status()
    except httpx2.HTTPError as error:
        raise PromptSetError(
            f"prompt set {row['name']}: {row['source']} cannot be fetched "
            f"({error or 'no answer'}). Run again when it can, or put a copy of it at {target}"
        ) from None
    return got.content


def _check(row: Mapping[str, str], found: str, table: str, what: str) -> None:
    """Raise a PromptSetError unless the hash of a prompt set is the one that is pinned."""
    if not row["sha256"]:
        raise PromptSetError(
            f"{table}: the sha256 of {row['name']} is open. That of {row['source']} is {found} "
            "now; see that the file is the right one, and write it there"
        )
    if found != row["sha256"]:
        raise PromptSetError(
            f"prompt set {row['name']}: {what} has sha256 {found}, and {row['sha256']} is pinned "
            f"in {table}"
        )


def subject_of(call: Mapping[str, Any]) -> str:
    """Return what a call is about: its prompt and images, whatever else it states."""
    about = {k: v for k, v in call.items() if k == "prompt" or is_image(k, v)}
    return described(about or call)


def refuse_overlap(calibration: list[str], evaluation: list[str]) -> None:
    """Raise a ValueError that names a prompt in both lists, if there is one."""
    both = set(calibration) & set(evaluation)
    if both:
        raise ValueError(
            f"{len(both)} calibration prompts are evaluation prompts too, for instance "
            f"{min(both)!r}: calibration must never see evaluation prompts; remove them from one"
        )


def shard_indices(count: int, shard: int, shards: int) -> range:
    """Return the prompt indices of one shard: contiguous, sizes differing by one at most.

    Raises:
        ValueError: the shard does not exist, or some shard would be empty.
    """
    if shards > count:
        raise ValueError(f"{shards} shards for {count} prompts: take at most one shard a prompt")
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} is not one of the {shards} shards 0 to {shards - 1}")
    return range(count * shard // shards, count * (shard + 1) // shards)


def images_of(path: str | os.PathLike) -> list[str]:
    """Return the paths of the images that a prompt file names, each once.

    Raises:
        FileNotFoundError, ValueError: as `read_calls` says.
    """
    named = [value for call in read_calls(path) for n, value in call.items() if is_image(n, value)]
    several = [value if isinstance(value, list) else [value] for value in named]
    return list(dict.fromkeys(image for images in several for image in images))

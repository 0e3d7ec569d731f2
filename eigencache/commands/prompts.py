"""Prompt files: one prompt a line."""

import os
from pathlib import Path


def read_prompts(path: str | os.PathLike, count: int | None = None) -> list[str]:
    """Return the first `count` prompts of a UTF-8 file (all of them by default), in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is empty or occurs twice, or the file is not UTF-8 or has fewer than
            `count` prompts.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such prompt file")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a prompt file must be UTF-8: {error}") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        prompt = line.strip()
        if not prompt:
            raise ValueError(f"{path}, line {number}: empty; write one prompt a line")
        if prompt in seen:
            raise ValueError(f"{path}, line {number}: the same prompt as line {seen[prompt]}")
        seen[prompt] = number
    if not seen:
        raise ValueError(f"{path}: no prompts; write one a line")
    if count is not None and count > len(seen):
        raise ValueError(f"{path}: {count} prompts are asked for, it has {len(seen)}")
    return list(seen)[:count]

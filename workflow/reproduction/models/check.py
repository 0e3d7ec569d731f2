"""Checks of a fetched model's files against its manifest."""

import json
from pathlib import Path

from eigencache._files import sha256


class FetchError(ValueError):
    """A model is unknown, or one of its files is missing, damaged or not the one pinned."""


def verified(manifest: str | Path) -> Path:
    """Return the folder of a fetched model, after checking every file against its manifest.

    Raises:
        FetchError: a file is missing, truncated or altered; the message says what to do.
    """
    fault = fault_of(Path(manifest))
    if fault:
        raise FetchError(f"{fault}; delete {manifest} and run again to fetch it anew")
    return Path(manifest).parent


def fault_of(manifest: Path) -> str | None:
    """Return the first file that differs from its manifest, and how, or None."""
    try:
        for name, facts in json.loads(manifest.read_text()).items():
            fault = mismatch(manifest.parent / name, facts["bytes"], facts["sha256"])
            if fault:
                return f"{manifest.parent / name}: {fault}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{manifest}: damaged ({error})"
    return None


def mismatch(path: Path, size: int, digest: str) -> str | None:
    """Return what is wrong with a file, or None."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, {size} are pinned"
    if sha256(path) != digest:
        return f"its sha256 is not the pinned {digest[:12]}..."
    return None

"""Checks of options: each raises a ValueError that names the option."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np


def check_whole(name: str, value: object, low: int) -> None:
    """Raise a ValueError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def check_real(name: str, value: object, above: float) -> None:
    """Raise a ValueError unless `value` is a finite number above `above`."""
    if not _is_finite(value) or value <= above:
        raise ValueError(f"{name} must be a finite number above {above}, got {value!r}")


def check_range(name: str, value: object, low: float, high: float = np.inf) -> None:
    """Raise a ValueError unless `value` is a finite number between `low` and `high`."""
    if not _is_finite(value) or not low <= value <= high:
        bound = "" if np.isinf(high) else f" and at most {high}"
        raise ValueError(f"{name} must be a finite number of at least {low}{bound}, got {value!r}")


def check_source(source: Mapping, error: type[ValueError]) -> None:
    """Raise `error` unless every name and every value in `source` is text."""
    for name, value in source.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise error(f"`source` must map text to text, got {name!r}: {value!r}")


def check_arguments(arguments: Mapping, error: type[ValueError]) -> None:
    """Raise `error` unless every name is text and every value is plain: see `agrees`."""
    for name, value in arguments.items():
        plain = isinstance(value, int | float | str | None) or _is_range(value)
        if not (isinstance(name, str) and plain):
            raise error(
                "`arguments` must map names to numbers, texts, flags or ranges [LOWEST, HIGHEST], "
                f"got {name!r}: {value!r}"
            )


def check_passes(passes: object, error: type[ValueError]) -> tuple[float, float] | None:
    """Return what a kernel or a plan says of passes; raise `error` if it is no range."""
    if passes is None:
        return None
    if not _is_range(passes):
        raise error(f"`passes` must be None or a range (LOWEST, HIGHEST), got {passes!r}")
    low, high = passes
    return float(low), float(high)


def agrees(made: object, called: object) -> bool:
    """Return whether a call's argument is the one that a plan or kernel was made at.

    Args:
        made: a number, text or flag; or `[lowest, highest]` of the numbers that it was made at.
        called: what the pipeline is called with.
    """
    if not _is_range(made):
        return called == made
    low, high = made
    return isinstance(called, int | float) and low <= called <= high


def joined(one: object, other: object) -> Any:
    """Return what two kernels were made at: one value, a range, or `...` for anything else."""
    if one == other:
        return one
    ends = [end for made in (one, other) for end in (made if _is_range(made) else [made])]
    if not all(map(_is_finite, ends)):
        return ...
    return [min(ends), max(ends)]  # type: ignore[type-var]


def span(made: object) -> str:
    """Return an argument that a plan was made at as text: 3.5, or 1 to 5."""
    parts = made if isinstance(made, list | tuple) else [made]
    return " to ".join(f"{part:g}" if _is_finite(part) else str(part) for part in parts)


def fixed(arguments: Mapping) -> dict:
    """Return the arguments that are no ranges: those that a call can be made with."""
    return {name: value for name, value in arguments.items() if not _is_range(value)}


def _is_range(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_finite, value))


def _is_finite(value: object) -> TypeGuard[float]:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number and bool(np.isfinite(value))  # type: ignore[call-overload]

"""What schedules share: checks, and weights of a kernel's streams by patterns of names."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np

from eigencache._checks import check_range
from eigencache.kernel import Kernel


def needed(kernel: Kernel | None) -> Kernel:
    """Return the kernel, or raise a ValueError if there is none."""
    if kernel is None:
        raise ValueError("the schedule needs a kernel: calibrate one first")
    return kernel


def budget_among(full_steps: int | None, count: int) -> int:
    """Return a budget, or raise a ValueError unless it lies between 1 and so many steps."""
    if full_steps is None or not 1 <= full_steps <= count:
        raise ValueError(f"full_steps must lie between 1 and {count}, got {full_steps}")
    return full_steps


def streams_of(
    kernel: Kernel | None, patterns: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix of each stream, float64 `[S, T, T]`, and its weight (`stream_weights`).

    Raises:
        ValueError: there is no kernel, or as `stream_weights` says.
    """
    kernel = needed(kernel)
    matrices = np.stack([kernel.matrix(stream) for stream in kernel.streams])
    return matrices, stream_weights(patterns, kernel.streams)


def stream_weights(patterns: Mapping[str, float], streams: tuple[str, ...]) -> np.ndarray:
    """Return one weight per stream, float64 `[S]`; they sum to one.

    Args:
        patterns: shell patterns of stream names (`transformer_blocks.*.attn`) to weights; the
            first that matches counts; a stream that matches none has weight 1.
        streams: the names.

    Raises:
        ValueError: a pattern matches no stream, or all weights are zero.
    """
    for pattern in patterns:
        if not any(fnmatchcase(stream, pattern) for stream in streams):
            raise ValueError(f"stream_weights: {pattern!r} matches none of the streams {streams}")
    weights = np.array(
        [
            next((w for pattern, w in patterns.items() if fnmatchcase(stream, pattern)), 1.0)
            for stream in streams
        ]
    )
    if not weights.sum() > 0:
        raise ValueError("stream_weights: every stream weighs zero")
    return weights / weights.sum()


def check_patterns(patterns: Mapping[str, float]) -> None:
    """Raise a ValueError unless every weight is a finite number of at least zero."""
    if not isinstance(patterns, Mapping):
        raise ValueError(f"stream_weights must map patterns to numbers, got {patterns!r}")
    for pattern, weight in patterns.items():
        check_range(f"stream_weights of {pattern!r}", weight, 0)

"""The clock: what parts of a computation take, on a GPU as it is there."""

import time
from typing import Any

import torch

Mark = Any  # seconds, or on a GPU an event


class Clock:
    """Marks moments, by CUDA events on a GPU, and tells the seconds between two.

    Args:
        device: "cuda", or any other for one whose work is done when its call returns.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def mark(self) -> Mark:
        """Return a mark of this moment; on a GPU, of when it gets there."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Mark, end: Mark) -> float:
        """Return seconds; on a GPU only after `finish`."""
        return begin.elapsed_time(end) / 1e3 if self.cuda else end - begin

    def finish(self) -> None:
        """Wait until the device has passed every mark."""
        if self.cuda:
            torch.cuda.synchronize()

"""What a cached transformer did: how many steps it computed, and how long each kind took.

On a CPU a call is timed by the clock. On other devices two events are recorded around it, which
does not wait for the device; they are asked for their times only when somebody reads a time.
"""

import math
import time
from collections import deque
from statistics import median
from typing import Any

import torch

from eigencache.plan import Plan, predicted_latent_error, predicted_psnr

# Times of so many of the latest calls of each kind are kept, that a server's memory does not grow.
KEPT = 1000


class CacheStats:
    """What a cached transformer did, counted over all its calls. `print` shows all of it.

    A pipeline calls its transformer once a step, or twice under classifier-free guidance. Times are
    of the transformer alone; what else the pipeline does takes as long with a cache as without.

    Attributes:
        full: calls at full steps, which computed every stream.
        skipped: calls at skipped steps, which forecast at least one.
        predicted_psnr: what the plan says of images in dB, by calibration prompts; or nan.
        predicted_error: what the plan says of latents, root mean square (`eigencache.design`); or
            nan.
    """

    def __init__(self, plan: Plan) -> None:
        self.full = self.skipped = 0
        self.predicted_psnr = predicted_psnr(plan)
        self.predicted_error = predicted_latent_error(plan)
        self._full: deque[Span] = deque(maxlen=KEPT)
        self._skipped: deque[Span] = deque(maxlen=KEPT)
        self._begun: float | torch.Event | None = None

    @property
    def full_seconds(self) -> float:
        """The median seconds of a call at a full step; nan before there is one."""
        return _median(self._full)

    @property
    def skipped_seconds(self) -> float:
        """The median seconds of a call at a skipped step; nan before there is one."""
        return _median(self._skipped)

    @property
    def seconds_saved(self) -> float:
        """What skipping has saved: the skipped calls times the difference of the medians.

        It is negative where forecasting takes longer than computing would, 0 while nothing was
        skipped, and nan as long as no full step has ended.
        """
        return self.skipped * (self.full_seconds - self.skipped_seconds) if self.skipped else 0.0

    def begin(self, full: bool, device: torch.device) -> None:
        """Count a call and start its time.

        Args:
            full: whether it is at a full step.
            device: where it will be computed.
        """
        if full:
            self.full += 1
        else:
            self.skipped += 1
        self._begun = _now(device)

    def end(self, full: bool, device: torch.device) -> None:
        """Stop the time of the call that `begin` counted, unless it was interrupted.

        Args:
            full: whether it is at a full step.
            device: where it was computed.
        """
        if self._begun is not None:
            (self._full if full else self._skipped).append((self._begun, _now(device)))
            self._begun = None

    def __str__(self) -> str:
        """Return steps full and skipped, seconds saved and predictions, in one line."""
        told = [f"{self.full} steps in full, {self.skipped} skipped"]
        if self.skipped and not math.isnan(self.seconds_saved):
            told.append(
                f"{self.seconds_saved:.3g} s saved (a full step takes {1e3 * self.full_seconds:.3g}"
                f" ms, a skipped one {1e3 * self.skipped_seconds:.3g} ms)"
            )
        if not math.isnan(self.predicted_psnr):
            told.append(f"predicted PSNR {self.predicted_psnr:.1f} dB")
        if not math.isnan(self.predicted_error):
            told.append(f"predicted error of latents {self.predicted_error:.2g}")
        return "; ".join(told)

    def __repr__(self) -> str:
        """Return the counts, as a call of the class would look."""
        return f"{type(self).__name__}(full={self.full}, skipped={self.skipped})"


Span = tuple[float | torch.Event, float | torch.Event]


def _now(device: torch.device) -> float | torch.Event:
    """Return the present moment of a device: the clock's, or an event that will know it."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.Event(device, enable_timing=True)
    event.record()
    return event


def _median(spans: deque[Span]) -> float:
    return median(map(_seconds, spans)) if spans else math.nan


def _seconds(span: Span) -> float:
    start, end = span
    if isinstance(start, torch.Event) and isinstance(end, torch.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    return end - start  # type: ignore[operator]


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

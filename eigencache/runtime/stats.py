"""What a cached pipeline did: how many steps it computed, and how long each kind took.

On a CPU a step is timed by the clock. On other devices two events are recorded around it, which
does not wait for the device; they are asked for their times only when somebody reads a time.
"""

import math
import time
from collections import deque
from statistics import median

import torch

from eigencache.plan import Plan

# Times of so many of the latest steps of each kind are kept, that a server's memory does not grow.
KEPT = 1000


class CacheStats:
    """What a cached pipeline did, counted over all its images. `print` shows all of it.

    A step goes from its first call of a network to the end of the scheduler's step. Of a bare
    transformer, every call counts as a step.

    Attributes:
        full: full steps, which computed everything.
        skipped: skipped steps, which forecast at least one stream.
        plan: that was sampled by last; None if there is none, or a built-in one is not made yet.
        predicted_psnr: what the plan says of images in dB, by calibration prompts; or nan.
        predicted_error: what the plan says of latents, root mean square (`eigencache.design`); or
            nan.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self.full = self.skipped = 0
        self.follow(plan)
        self._first: float | torch.Event | None = None
        self._loop: Span | None = None
        self._device = torch.device("cpu")
        self._full: deque[Span] = deque(maxlen=KEPT)
        self._skipped: deque[Span] = deque(maxlen=KEPT)
        self._begun: tuple[deque[Span], float | torch.Event, torch.device] | None = None

    def follow(self, plan: Plan | None) -> None:
        """Be told what is sampled by from now on.

        Args:
            plan: None if that is not known yet.
        """
        self.plan = plan
        self.predicted_psnr = plan.predicted_psnr if plan else math.nan
        self.predicted_error = plan.predicted_error if plan else math.nan

    @property
    def full_seconds(self) -> float:
        """The median seconds of a full step; nan before there is one."""
        return _median(self._full)

    @property
    def skipped_seconds(self) -> float:
        """The median seconds of a skipped step; nan before there is one."""
        return _median(self._skipped)

    @property
    def seconds_saved(self) -> float:
        """The seconds that skipping saved, by the difference of the medians for each skipped step.

        It is negative where forecasting takes longer than computing would, 0 while nothing was
        skipped, and nan as long as no full step has ended.
        """
        return self.skipped * (self.full_seconds - self.skipped_seconds) if self.skipped else 0.0

    @property
    def loop_seconds(self) -> float:
        """The seconds of the latest image's denoising; nan before there is one.

        They go from the first call of a network to the end of the latest step.
        """
        return _seconds(self._loop) if self._loop else math.nan

    def since_loop(self) -> float:
        """Return the seconds since the end of the latest step, such as decoding took."""
        return _seconds((self._loop[1], _now(self._device))) if self._loop else math.nan

    def begin(self, full: bool, device: torch.device, first: bool = False) -> None:
        """Start the time of a step, which counts once it has ended.

        Args:
            full: whether it is full.
            device: where it will be computed.
            first: whether an image begins with it.
        """
        now = _now(device)
        self._begun = self._full if full else self._skipped, now, device
        if first:
            self._first, self._device = now, device

    def end(self) -> None:
        """Count the step that was begun, if one was, and stop its time."""
        if self._begun is not None:
            spans, start, device = self._begun
            if spans is self._full:
                self.full += 1
            else:
                self.skipped += 1
            now = _now(device)
            spans.append((start, now))
            self._begun = None
            if self._first is not None:
                self._loop = self._first, now

    def __str__(self) -> str:
        """Return steps full and skipped, seconds saved, plan and predictions, in one line."""
        told = [f"{self.full} steps in full, {self.skipped} skipped"]
        if self.skipped and not math.isnan(self.seconds_saved):
            told.append(
                f"{self.seconds_saved:.3g} s saved (a full step takes {1e3 * self.full_seconds:.3g}"
                f" ms, a skipped one {1e3 * self.skipped_seconds:.3g} ms)"
            )
        if self.plan is not None and "built in" in self.plan.source:
            full, kind = int(self.plan.full.sum()), self.plan.source["built in"]
            told.append(f"built-in plan: {full} of {len(self.plan)} steps in full, for {kind}")
        if self.plan is not None:
            told.append(self.plan.predictions)
        return "; ".join(filter(None, told))

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

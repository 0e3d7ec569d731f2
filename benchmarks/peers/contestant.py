"""What takes part in the comparison."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Contestant:
    """One method, run by the code of one source.

    Attributes:
        method: what its rows are called.
        source: the package whose code runs, with its version.
        apply: `apply(pipe, **setting)` is a context manager; while it is open, the pipeline samples
            by the method. It yields the number of steps to ask the pipeline for, None for those of
            the full run.
        setting: from a number of full steps to the settings that come nearest to it, which are
            those of `apply` and of the table; None if there are none.
        thresholds: the lowest and the highest value of one more setting, `threshold`, which is
            searched for on calibration prompts; None if there is no such setting.
        alone: whether the steps that it computes depend on the image, so that two images in one
            batch would change each other's.
        cost: from a number of full steps to columns of the table that say what fitting took.
    """

    method: str
    source: str
    apply: Callable[..., AbstractContextManager[int | None]]
    setting: Callable[[int], dict | None]
    thresholds: tuple[float, float] | None = None
    alone: bool = False
    cost: Callable[[int], dict] = lambda budget: {}


@dataclass(frozen=True)
class Study:
    """What a source may need to know to name its contestants.

    Attributes:
        num_steps: of the full run.
        fits: folder of what was fitted: METHOD/BUDGET.json.
        calibrate: samples calibration prompts with the pipeline it is given, as it then is.
        prompts: how many those are.
    """

    num_steps: int
    fits: Path | None
    calibrate: Callable[[object], None] | None
    prompts: int = 0


def nearest(settings: Iterable[dict], full_steps: Callable[[dict], int], budget: int) -> dict:
    """Return the first of the settings that come nearest to a budget of full steps."""
    return min(settings, key=lambda setting: abs(full_steps(setting) - budget))

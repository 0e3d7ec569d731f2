"""Schedules: which steps are computed in full.

A schedule is a small immutable object with one method,

    full(timesteps, predictor, kernel=None) -> bool [T]

which may look at the predictor that will fill the gaps and at the kernel (`eigencache.kernel`;
None unless the schedule's own `kernel` is True). A budget, `full_steps`, is kept to the step.
"""

from typing import TYPE_CHECKING

from eigencache._lazy import lazily

if TYPE_CHECKING:  # for type checkers and editors, which do not run `__getattr__`
    from eigencache.schedules._even import Even as Even
    from eigencache.schedules._greedy import Greedy as Greedy
    from eigencache.schedules._interval import Interval as Interval
    from eigencache.schedules._optimal import Optimal as Optimal
    from eigencache.schedules._schedule import Schedule as Schedule
    from eigencache.schedules._steps import Steps as Steps
    from eigencache.schedules._variance import Variance as Variance

_HOMES = {
    "Even": "_even",
    "Greedy": "_greedy",
    "Interval": "_interval",
    "Optimal": "_optimal",
    "Schedule": "_schedule",
    "Steps": "_steps",
    "Variance": "_variance",
}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)

"""How the sampling is split into jobs: shards of the prompts, and groups of methods.

Each job has to load the model.

Work is counted in full steps, so that the number of shards depends on the configuration and not on
the machine. docs/scale.md has the seconds behind the constants.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reproduction.prompts import shard_indices

# Starting, checking and loading 33.7 GB take about a minute, in which an H200 computes some 300
# full steps of FLUX.1-dev. For a small model loading takes about as many of its own steps.
LOADING = 300
# The largest share of a job that loading may take. Above it `auto` takes fewer shards.
SHARE = 0.1
# The most full steps that a killed job may lose: a quarter of an hour of FLUX.1-dev on an H200.
LONGEST = 5000
# Three digits name a shard, and a method's shards must fit into one command line.
MOST = 1000


@dataclass(frozen=True)
class Shards:
    """The prompts of an experiment, split into jobs.

    Attributes:
        prompts: how many.
        count: the number of shards; each method has one job per shard.
        num_steps: of a full run.
        budgets: the full steps of each cached run; empty if there are only full runs.
        timed: for how many prompts of a job a full run is timed next to the cached ones.
    """

    prompts: int
    count: int
    num_steps: int
    budgets: tuple[int, ...]
    timed: int

    def __post_init__(self) -> None:
        """Raise a ValueError if some shard would be empty."""
        shard_indices(self.prompts, 0, self.count)

    @cached_property
    def shortest(self) -> int:
        """The full steps of the shortest job."""
        return min(self._jobs(self.prompts // self.count))

    @cached_property
    def longest(self) -> int:
        """The full steps of the longest job."""
        return max(self._jobs(-(-self.prompts // self.count)))

    @property
    def together(self) -> int:
        """How many methods a job samples: so many that loading is no more than SHARE of it."""
        prompts = self.prompts // self.count
        rest = LOADING * (1 / SHARE - 1) - self._compared(prompts)
        return max(1, math.ceil(rest / (prompts * sum(self.budgets)))) if self.budgets else 1

    def groups(self, labels: Sequence[str]) -> list[list[str]]:
        """Return labels, in their order, in the groups that jobs sample together.

        A label more at the end joins the last group, and leaves the others as they were.
        """
        size = self.together
        return [list(labels[i : i + size]) for i in range(0, len(labels), size)]

    @property
    def loading(self) -> float:
        """The share of the shortest job that is spent loading the model."""
        return LOADING / (LOADING + self.shortest)

    def _jobs(self, prompts: int) -> list[int]:
        """Return the full steps of each kind of job, with the first run, which is discarded."""
        full = (1 + prompts) * self.num_steps
        if not self.budgets:
            return [full]
        return [full, self._compared(prompts) + prompts * sum(self.budgets)]

    def _compared(self, prompts: int) -> int:
        """Return the full steps of the first run, which is discarded, and of the timed ones."""
        return (1 + min(self.timed, prompts)) * self.num_steps

    def __str__(self) -> str:
        if self.together > 1:
            return (
                f"{self.count} for {self.prompts:,} prompts; a job samples several methods, since "
                f"loading the model would take up to {self.loading:.0%} of the time of one"
            )
        advice = "; fewer shards, or auto, load less often" if self.loading > SHARE else ""
        return (
            f"{self.count} for {self.prompts:,} prompts: a job computes {self.shortest:,} to "
            f"{self.longest:,} full steps; loading the model, taken for {LOADING} more, is at most "
            f"{self.loading:.1%} of it{advice if self.count > 1 else ''}"
        )


def plan_shards(
    stated: int | str, prompts: int, num_steps: int, budgets: Sequence[int], timed: int
) -> Shards:
    """Return the shards of an experiment: as many as it states, or for "auto" as many as suit it.

    For "auto" that is the smallest number for which no job is longer than LONGEST, or fewer if
    loading would otherwise be more than SHARE of a job.

    Args:
        stated: the number of shards, or "auto".
        prompts: their number.
        num_steps: of a full run.
        budgets: the full steps of each cached run; empty if there are only full runs.
        timed: for how many prompts of a job a full run is timed next to the cached ones.

    Raises:
        ValueError: there are more shards than prompts.
    """

    def split(count: int) -> Shards:
        return Shards(prompts, count, num_steps, tuple(budgets), timed)

    if isinstance(stated, int):
        return split(stated)
    best = split(1)
    for count in range(2, min(prompts, MOST) + 1):
        more = split(count)
        if best.longest <= LONGEST or more.loading > SHARE:
            break
        best = more
    return best

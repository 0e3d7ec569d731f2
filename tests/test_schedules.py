"""Schedules: the interval against its definition, and budgets kept to the step."""

import re

import numpy as np
import pytest
from conftest import flow_timesteps

from eigencache.predictors import Reuse
from eigencache.schedules import Interval, Steps


def full_steps(schedule, count):
    full = schedule.full(flow_timesteps(count), Reuse())
    assert full.dtype == bool
    assert full.shape == (count,)
    return list(np.flatnonzero(full))


def interval_by_definition(count, every, first):
    """A step is full if it is one of the first, or if `every - 1` were skipped since the last."""
    steps, skipped = [], 0
    for step in range(count):
        if step < first or skipped == every - 1:
            steps.append(step)
            skipped = 0
        else:
            skipped += 1
    return steps


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("first", [1, 2, 3, 10])
@pytest.mark.parametrize("every", [1, 2, 3, 7, 60])
def test_interval_is_its_definition(count, every, first):
    mine = full_steps(Interval(every=every, first=first), count)
    assert mine == interval_by_definition(count, every, first)


@pytest.mark.parametrize("budget", [7, 9, 12, 18])
def test_a_budget_is_kept_to_the_step(budget):
    assert len(full_steps(Interval(budget), 50)) == budget


@pytest.mark.parametrize("budget", [7, 9, 12, 18])
def test_a_budget_takes_the_shortest_interval_that_gives_it(budget):
    lengths = [len(interval_by_definition(50, every, 3)) for every in range(1, 51)]
    shortest = 1 + lengths.index(budget)
    assert full_steps(Interval(budget), 50) == interval_by_definition(50, shortest, 3)


@pytest.mark.parametrize("budget", [0, 2, 20, 49, 51])
def test_an_impossible_budget_lists_the_possible(budget):
    possible = sorted({len(interval_by_definition(50, n, 3)) for n in range(1, 51)})
    with pytest.raises(ValueError, match=re.escape(f"possible are {possible}")):
        full_steps(Interval(budget), 50)


@pytest.mark.parametrize("options", [{}, {"full_steps": 9, "every": 3}])
def test_interval_takes_a_budget_or_an_interval(options):
    with pytest.raises(ValueError, match="either full_steps or every"):
        Interval(**options)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 3, "first": 0}])
def test_interval_has_no_room_for_zero(options):
    with pytest.raises(ValueError, match="at least 1"):
        Interval(**options)


def test_steps_are_those_named():
    assert full_steps(Steps([0, 4, 2]), 6) == [0, 2, 4]


@pytest.mark.parametrize("steps", [[0, 6], [-1, 0]])
def test_steps_outside_the_sampler_are_refused(steps):
    with pytest.raises(ValueError, match="not all among 0 to 5"):
        full_steps(Steps(steps), 6)

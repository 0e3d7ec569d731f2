"""Taps inside the network on every pipeline of the zoo: right, or refused with a reason."""

import re

import numpy as np
import pytest
from zoo import ZOO
from zoo.runs import Measured, check_same, counting, kept, reuse_weights

import eigencache
from eigencache.plan import TAPS


@pytest.fixture(scope="module", params=ZOO)
def measured(request):
    return Measured(ZOO[request.param]())


QUERIES = re.compile(r"(?!.*(embed|text|refiner)).*\.(to_q|qkv)")


def attentions(calls):
    """Return how often queries were computed in blocks, not where the prompt is prepared."""
    return sum(count for name, count in calls.items() if QUERIES.fullmatch(name))


@pytest.mark.parametrize("tap", [tap for tap in TAPS if tap != "output"])
def test_right_or_refused(measured, tap, record_property):
    """Either enabling says why not, or a full plan changes nothing and a half plan skips.

    At tap "modules" no attention may run at a skipped step: one that did would be a part that the
    tap has missed.
    """
    case, before = measured.case, kept(measured.case)

    def plan(full):
        return eigencache.Plan(full, reuse_weights(full), measured.plain.timesteps, tap)

    full = np.ones(len(measured.plain), bool)
    try:
        with eigencache.cached(case.pipe, plan(full)):
            check_same(case(0), measured.plain.result)
        with eigencache.cached(case.pipe, plan(measured.full)), counting(case.denoisers()) as calls:
            results = case(0)
    except ValueError as refusal:
        record_property("outcome", "refused")  # `benchmarks/pipelines.py` reads it
        assert len(str(refusal)) > 40
        assert kept(case) == before
        check_same(case(0), measured.plain.result)
        return
    assert all(tensor.isfinite().all() for tensor in results)
    runs = [sum(step.values()) for step in measured.plain.calls]
    assert sum(calls.values()) < sum(runs)
    if tap == "modules":
        expected = [attentions(measured.plain.calls[s]) for s in np.flatnonzero(measured.full)]
        assert attentions(calls) == sum(expected)
    assert kept(case) == before
    check_same(case(0), measured.plain.result)

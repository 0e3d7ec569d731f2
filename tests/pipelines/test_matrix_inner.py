"""Taps inside the network on every pipeline of the zoo: right, or refused with a reason."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from zoo.runs import check_same, counting, kept, repeating, reuse_weights

import eigencache
from benchmarks.pipelines import FILE, REFUSED, RIGHT
from eigencache.plan import TAPS
from eigencache.runtime._driver import DRIVER

# What docs/pipelines.md states: a row for each configuration, a column for each tap.
STATED = pd.read_csv(FILE, index_col="configuration")

# How diffusers names what computes queries and what an MLP consists of. What has a hook itself, as
# a projection of a fused block, is called where it does not run, and left out.
WORK = re.compile(
    r"(?!.*(norm|modulation|_mod\.|distilled|pooler)).*\.\d+\..*"
    r"(to_q|to_query|(img_)?qkv(_mlp)?(_proj)?|net\.0\.proj|net\.2|w[123]|linear_(1|2|3|in|out)|"
    r"in_layer|out_layer|conv_inverted|conv_depth|conv_point)"
)


def work(calls):
    """Return how often the attentions and MLPs of blocks ran, those of the prompt included."""
    return {name: count for name, count in calls.items() if WORK.fullmatch(name)}


@pytest.mark.parametrize("tap", [tap for tap in TAPS if tap != "output"])
def test_right_or_refused(measured, tap, record_property):
    """A tap is right or refused, whichever the table of docs/pipelines.md states.

    Where the outcome has changed on purpose, `python -m benchmarks.pipelines` writes the table
    anew.
    """
    case, before = measured.case, kept(measured.case)
    refusal = _right(measured, tap)
    assert kept(case) == before
    found = REFUSED if refusal else RIGHT
    # `benchmarks/pipelines.py` reads it, whatever the table has stated so far.
    record_property("outcome", found)
    assert case.name in STATED.index, f"{case.name} is not in {FILE.name}"
    stated = STATED.at[case.name, tap]
    assert found == stated, (
        f"{case.name} at tap {tap}: {FILE.name} states {stated}, found {found}"
        + (f" ({refusal})" if refusal else "")
    )


def _right(measured, tap):
    """Check that a full plan changes nothing and that a half plan skips, or return the refusal.

    A network that is given the same at each step must return the same at each: what a skipped step
    would take from elsewhere than the full step before it, or leave as it was, would differ.
    At tap "modules" no attention and no MLP may run at a skipped step: one that did would be a part
    that the tap has missed.
    """
    case = measured.case

    def plan(full):
        return eigencache.Plan(full, reuse_weights(full), measured.plain.timesteps, tap)

    full = np.ones(len(measured.plain), bool)
    try:
        with eigencache.cached(case.pipe, plan(full)):
            check_same(case(0), measured.plain.result)
        with eigencache.cached(case.pipe, plan(measured.full)), counting(case.denoisers()) as calls:
            results = case(0)
    except ValueError as refusal:
        assert len(str(refusal)) > 40
        assert "has one block" not in str(refusal), "of a stand-in, not of its pipeline"
        return refusal
    assert all(tensor.isfinite().all() for tensor in results)
    network, step = case.pipe.transformer, lambda: vars(case.pipe)[DRIVER].step
    with eigencache.cached(case.pipe, plan(measured.full)), repeating(network, step) as returned:
        case(0)
    for first, *later in returned:
        for parts in later:
            torch.testing.assert_close(parts, first, rtol=1e-4, atol=1e-5)
    runs = [sum(step.values()) for step in measured.plain.calls]
    assert sum(calls.values()) < sum(runs)
    if tap == "modules":
        expected = Counter()
        for step in np.flatnonzero(measured.full):
            expected.update(work(measured.plain.calls[step]))
        assert work(calls) == expected and expected
    return None

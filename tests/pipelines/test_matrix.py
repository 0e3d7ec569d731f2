"""The runtime at tap "output" on every pipeline of the zoo, against runs without a cache."""

import inspect

import pytest
import torch
from zoo.runs import calling, check_same, counting, kept, twin

import eigencache


def test_prompts_differ(measured):
    """That plain runs repeat every comparison with one tells."""
    plain = measured.plain.result
    assert not any(map(torch.equal, measured.case(1), plain))
    assert all(tensor.isfinite().all() for tensor in plain)


def test_all_steps_full_is_bit_identical(measured):
    plan = measured.plan([True] * len(measured.plain))
    with eigencache.cached(measured.case.pipe, plan):
        check_same(measured.case(0), measured.plain.result)


def test_a_reuse_plan_is_what_a_few_lines_do(measured):
    """At a skipped step no denoiser runs; prompts in a row are each as alone; nothing is left."""
    case, plain, plan = measured.case, measured.plain, measured.plan()
    before, expected = kept(case), [measured.expected(number) for number in (0, 1)]
    # The plan does change the result, so that the comparison says something.
    assert not any(map(torch.equal, expected[0], plain.result))
    with eigencache.cached(case.pipe, plan):
        with counting(case.denoisers()) as calls:
            check_same(case(1), expected[1])
        check_same(case(0), expected[0])
        check_same(case(0), expected[0])
    assert calls == sum((plain.calls[s] for s in plan.full_steps), start=type(calls)())
    assert len(plan.full_steps) < len(plain)
    assert kept(case) == before
    check_same(case(0), plain.result)


def test_a_pipeline_with_the_same_networks_samples_between_two_steps(measured):
    case, plain, between = measured.case, twin(measured.case), []
    expected = measured.expected()
    shared = next(iter(case.denoisers()))
    assert getattr(plain.pipe, shared) is getattr(case.pipe, shared)
    tells = "callback_on_step_end" in inspect.signature(type(case.pipe).__call__).parameters
    with eigencache.cached(case.pipe, measured.plan()):
        # The others have no step's end of which they tell.
        half_way = calling(lambda pipe: between.append(plain(0))) if tells else {}
        check_same(case(0, **half_way), expected)
        between.append(plain(0))
    assert len(between) == 1 + tells
    for result in between:
        check_same(result, measured.plain.result)


def test_a_scheduler_that_is_swapped_is_an_error(measured):
    case, pipe = measured.case, measured.case.pipe
    before = pipe.scheduler
    try:
        with eigencache.cached(pipe, measured.plan()):
            pipe.scheduler = type(before).from_config(before.config)
            with pytest.raises(ValueError, match="scheduler was replaced"):
                case(0)
    finally:
        pipe.scheduler = before

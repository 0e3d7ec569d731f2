"""The runtime at tap "output" on every pipeline of the zoo, against runs without a cache."""

import inspect

import pytest
import torch
from zoo.runs import calling, check_same, counting, kept, twin

import eigencache


def test_plain_runs_repeat_and_prompts_differ(measured):
    case = measured.case
    check_same(case(0), measured.plain.result)
    assert not any(map(torch.equal, case(1), measured.plain.result))
    assert all(tensor.isfinite().all() for tensor in measured.plain.result)


def test_all_steps_full_is_bit_identical(measured):
    plan = measured.plan([True] * len(measured.plain))
    with eigencache.cached(measured.case.pipe, plan):
        check_same(measured.case(0), measured.plain.result)


def test_every_denoiser_runs_at_full_steps_and_at_no_other(measured):
    case, plain = measured.case, measured.plain
    with eigencache.cached(case.pipe, measured.plan()), counting(case.denoisers()) as calls:
        case(0)
    expected = sum((plain.calls[s] for s in measured.plan().full_steps), start=type(calls)())
    assert calls == expected
    assert len(measured.plan().full_steps) < len(plain)


def test_a_reuse_plan_is_what_a_few_lines_do(measured):
    expected = measured.expected()
    # The plan does change the result, so that the comparison says something.
    assert not any(map(torch.equal, expected, measured.plain.result))
    with eigencache.cached(measured.case.pipe, measured.plan()):
        check_same(measured.case(0), expected)


def test_two_prompts_in_a_row_equal_each_alone(measured):
    case, alone = measured.case, []
    for number in (0, 1):
        with eigencache.cached(case.pipe, measured.plan()):
            alone.append(case(number))
    with eigencache.cached(case.pipe, measured.plan()):
        check_same(case(1), alone[1])
        check_same(case(0), alone[0])
        check_same(case(0), alone[0])


def test_a_pipeline_with_the_same_networks_samples_between_two_steps(measured):
    case, plain, between = measured.case, twin(measured.case), []
    expected = measured.expected()
    shared = next(iter(case.denoisers()))
    assert getattr(plain.pipe, shared) is getattr(case.pipe, shared)
    tells = "callback_on_step_end" in inspect.signature(type(case.pipe).__call__).parameters
    with eigencache.cached(case.pipe, measured.plan()):
        check_same(plain(0), measured.plain.result)
        # The others have no step's end of which they tell.
        half_way = calling(lambda pipe: between.append(plain(0))) if tells else {}
        check_same(case(0, **half_way), expected)
        check_same(plain(0), measured.plain.result)
    assert len(between) == tells
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
    check_same(case(0), measured.plain.result)


def test_nothing_is_left_after_the_block(measured):
    case = measured.case
    before = kept(case)
    with eigencache.cached(case.pipe, measured.plan()):
        case(1)
    assert kept(case) == before
    check_same(case(0), measured.plain.result)

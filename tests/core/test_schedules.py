"""Schedules: each against its definition, step by step, and budgets kept to the step."""

import re

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.kernel import Kernel
from eigencache.predictors import Kriging, Reuse
from eigencache.schedules import Even, Greedy, Interval, Optimal, Steps, Variance
from eigencache.schedules._streams import stream_weights

COUNT = 12
TIMESTEPS = flow_timesteps(COUNT)
STREAMS = ("blocks.0.attn:q", "blocks.0.ff", "blocks.1.attn:q")
RUNS = random_trajectories(TIMESTEPS, roughness=0.1)
# The second stream has its life backwards, the third is the first to a higher power.
KERNELS = [
    Kernel.of_run(
        dict(zip(STREAMS, (run, run[::-1], run**3), strict=True)), TIMESTEPS, tap="modules"
    )
    for run in RUNS
]
KERNEL = sum(KERNELS[1:], KERNELS[0])
# Patterns that leave very different streams in charge.
WEIGHTS = [{}, {"blocks.0.ff": 30.0}, {"blocks.0.ff": 1.0, "*": 0.0}, {"*.ff": 0, "*.1.*": 0.2}]


def full_steps(schedule, count, kernel=None):
    full = schedule.full(flow_timesteps(count), Reuse(), kernel)
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


# ---- Of a kernel


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Greedy, {}),
        (Greedy, {"stream_weights": {"*:q": 2.0}}),
        (Variance, {}),
        (Variance, {"window": 1, "stream_weights": {"*:q": 2.0}}),
        (Optimal, {}),
        (Even, {}),
        (Interval, {}),
    ],
)
def test_every_feasible_budget_is_kept_to_the_step(make, options):
    feasible = range(1, COUNT + 1)
    if make is Interval:
        feasible = {len(interval_by_definition(COUNT, n, 3)) for n in feasible}
    for budget in feasible:
        full = make(budget, **options).full(TIMESTEPS, Kriging(2), KERNEL)
        assert full[0] and full.sum() == budget


@pytest.mark.parametrize("make", [Greedy, Variance, Optimal, Even], ids=lambda m: m.__name__)
@pytest.mark.parametrize("budget", [0, COUNT + 1])
def test_a_budget_beyond_the_steps_is_refused(make, budget):
    with pytest.raises(ValueError, match=f"must lie between 1 and (the )?{COUNT}"):
        make(budget).full(TIMESTEPS, Kriging(2), KERNEL)


def weights_by_name(patterns):
    """Return w_l of the streams above, where "*.attn:q" and such need no shell to be read."""
    found = []
    for stream in STREAMS:
        expressions = [re.escape(pattern).replace(r"\*", ".*") for pattern in patterns]
        hits = [re.fullmatch(expression, stream) for expression in expressions]
        values = [value for value, hit in zip(patterns.values(), hits, strict=True) if hit]
        found.append(values[0] if values else 1.0)
    return found


def greedy_by_definition(budget, jitter, patterns):
    """Add, one by one, the step that raises sum_l w_l logdet(I + C_SS / (jitter s)) / 2 most."""
    chosen = [0]
    while len(chosen) < budget:
        objectives = {}
        for step in set(range(COUNT)) - set(chosen):
            tried, total = [*chosen, step], 0
            for weight, stream in zip(weights_by_name(patterns), STREAMS, strict=True):
                matrix = KERNEL.matrix(stream)
                noise = jitter * np.mean(np.diag(matrix))
                part = np.eye(len(tried)) + matrix[np.ix_(tried, tried)] / noise
                total += weight * np.linalg.slogdet(part)[1] / 2
            objectives[step] = total
        chosen.append(max(objectives, key=objectives.get))
    return sorted(chosen)


@pytest.mark.parametrize("patterns", WEIGHTS, ids=str)
@pytest.mark.parametrize("jitter", [1e-4, 1e-3, 1e-1])
def test_greedy_is_the_log_determinant_computed_anew_at_every_pick(patterns, jitter):
    for budget in (2, 3, 5, 8, 12):
        mine = full_steps(Greedy(budget, jitter, patterns), COUNT, KERNEL)
        assert mine == greedy_by_definition(budget, jitter, patterns)


def share_by_definition(matrix, past, step, jitter):
    """Return the kriging variance of a step as a share of its second moment."""
    among, toward = matrix[np.ix_(past, past)], matrix[past, step]
    among = among + jitter * np.diag(among).mean() * np.eye(len(past))
    return 1 - toward @ np.linalg.inv(among) @ toward / matrix[step, step]


def variance_by_definition(tau, window, jitter, patterns):
    """Return the full steps, and the variance of each step from those before it."""
    weights, full, variances = weights_by_name(patterns), [0], [np.inf]
    for step in range(1, COUNT):
        past = full if window is None else full[-window:]
        shares = [share_by_definition(KERNEL.matrix(s), past, step, jitter) for s in STREAMS]
        variances.append(np.average(shares, weights=weights))
        if variances[-1] > tau:
            full = [*full, step]
    return full, variances


@pytest.mark.parametrize("patterns", WEIGHTS, ids=str)
@pytest.mark.parametrize("window", [1, 3, None])
@pytest.mark.parametrize("jitter", [1e-3, 1e-1])
def test_variance_is_its_threshold_step_by_step(patterns, window, jitter):
    for tau in (0.0, 0.003, 0.01, 0.05, 0.3, 1.0):
        schedule = Variance(None, tau, window, jitter, patterns)
        expected, _ = variance_by_definition(tau, window, jitter, patterns)
        assert full_steps(schedule, COUNT, KERNEL) == expected


@pytest.mark.parametrize("patterns", WEIGHTS[:2], ids=str)
@pytest.mark.parametrize("window", [1, 3, None])
def test_a_budget_of_variance_is_that_of_the_largest_tau_which_gives_it(patterns, window):
    tau, (full, variances) = 1.0, variance_by_definition(1.0, window, 1e-3, patterns)
    for budget in range(1, COUNT + 1):
        while len(full) < budget:
            tau = max(v for step, v in enumerate(variances) if step not in full) * (1 - 1e-12)
            full, variances = variance_by_definition(tau, window, 1e-3, patterns)
        skipped = sorted(full, key=lambda step: variances[step])[: len(full) - budget]
        mine = full_steps(Variance(budget, None, window, 1e-3, patterns), COUNT, KERNEL)
        assert mine == [step for step in full if step not in skipped]


def test_equal_variances_do_not_spoil_a_budget():
    strangers = Kernel({"a": np.eye(COUNT)}, 1, TIMESTEPS, tap="output")
    for budget in range(1, COUNT + 1):  # whatever tau: all steps or step 0 alone
        full = Variance(budget).full(TIMESTEPS, Reuse(), strangers)
        assert full[0] and full.sum() == budget


@pytest.mark.parametrize("make", [Greedy, Variance], ids=lambda m: m.__name__)
def test_stream_weights_change_what_is_full(make):
    chosen = {tuple(full_steps(make(5, stream_weights=w), COUNT, KERNEL)) for w in WEIGHTS}
    assert len(chosen) >= 3


@pytest.mark.parametrize("make", [Greedy, Variance], ids=lambda m: m.__name__)
def test_a_stream_of_weight_zero_does_not_count(make):
    alone = kernel_of(RUNS, TIMESTEPS, STREAMS[:1], tap="modules")
    for budget in (3, 5, 8):
        mine = make(budget, stream_weights={STREAMS[0]: 0.3, "*": 0}).full(
            TIMESTEPS, Reuse(), KERNEL
        )
        assert np.array_equal(mine, make(budget).full(TIMESTEPS, Reuse(), alone))


def test_optimal_is_the_design_for_the_mean_of_all_streams():
    mean = Kernel({"output": KERNEL.matrix()}, 1, TIMESTEPS, tap="output")
    for budget in (3, 5):
        mine = Optimal(budget).full(TIMESTEPS, Kriging(2), KERNEL)
        assert np.array_equal(mine, Optimal(budget).full(TIMESTEPS, Kriging(2), mean))


# ---- Weights of streams

NAMES = (
    "transformer_blocks.0.attn:to_q",
    "transformer_blocks.0.ff.net",
    "transformer_blocks.10.attn:to_q",
    "single_transformer_blocks.0.proj_out",
)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"transformer_blocks.0.attn:to_q": 5.0}, [5, 1, 1, 1]),
        ({"*.attn:to_q": 3.0}, [3, 1, 3, 1]),
        ({"transformer_blocks.*": 2, "single_*": 0.5}, [2, 2, 2, 0.5]),
        ({"transformer_blocks.?.*": 4.0}, [4, 4, 1, 1]),
        ({"*:to_q": 3.0, "transformer_blocks.0.*": 7.0}, [3, 7, 3, 1]),
        ({"transformer_blocks.0.*": 7.0, "*:to_q": 3.0}, [7, 7, 3, 1]),
        ({"*": 0.0, "single_transformer_blocks.0.proj_out": 1.0}, None),
        ({"*proj_out": 1e-3, "*": 0}, [0, 0, 0, 1]),
    ],
)
def test_names_with_colons_and_dots_have_the_weights_stated(patterns, expected):
    if expected is None:
        with pytest.raises(ValueError, match="every stream weighs zero"):
            stream_weights(patterns, NAMES)
    else:
        weights = stream_weights(patterns, NAMES)
        assert np.allclose(weights, np.array(expected) / np.sum(expected), rtol=1e-15)


@pytest.mark.parametrize("pattern", ["attn", "transformer_blocks.0", "*.attn:to_k", "", "BLOCKS.*"])
@pytest.mark.parametrize("make", [Greedy, Variance], ids=lambda m: m.__name__)
def test_a_pattern_of_no_stream_is_named(make, pattern):
    message = re.escape(f"stream_weights: {pattern!r} matches none of the streams {STREAMS}")
    with pytest.raises(ValueError, match=message):
        make(5, stream_weights={pattern: 2.0, "*": 1.0}).full(TIMESTEPS, Reuse(), KERNEL)


@pytest.mark.parametrize("make", [Greedy, Variance], ids=lambda m: m.__name__)
@pytest.mark.parametrize("weights", ["a:1", [1.0], {"a": -1}, {"a": "1"}, {"a": float("nan")}])
def test_weights_are_numbers_of_at_least_zero(make, weights):
    with pytest.raises(ValueError, match="stream_weights"):
        make(5, stream_weights=weights)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Greedy, {"jitter": 0}),
        (Greedy, {"jitter": "small"}),
        (Variance, {"jitter": -1e-3}),
        (Variance, {"window": 0}),
        (Variance, {"window": 2.0}),
        (Variance, {"tau": -0.1, "full_steps": None}),
        (Variance, {"tau": "0.05", "full_steps": None}),
    ],
)
def test_an_invalid_option_is_named(make, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        make(**{"full_steps": 5} | options)


@pytest.mark.parametrize("options", [{}, {"full_steps": 9, "tau": 0.05}])
def test_variance_takes_a_budget_or_a_threshold(options):
    with pytest.raises(ValueError, match="either full_steps or tau"):
        Variance(**options)

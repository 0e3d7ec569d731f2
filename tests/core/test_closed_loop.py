"""The closed loop, on small velocity fields in NumPy: each part against a slow, plain one."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from helpers import flow_timesteps

from eigencache import closed_loop
from eigencache.closed_loop import (
    CANDIDATES,
    ClosedLoop,
    Fit,
    Runs,
    carry,
    decibels,
    designs,
    follow,
    gauss_newton,
    refine,
    slopes_of,
    updates_of,
    with_updates,
)
from eigencache.design import gap_coefficients
from eigencache.kernel import Kernel
from eigencache.methods import make_plan
from eigencache.plan import PlanError
from eigencache.predictors import Kriging, Newton, Reuse, Taylor
from eigencache.schedules import Optimal, Steps

STEPS, IMAGES, SIZE = 10, 5, 6
TIMESTEPS = flow_timesteps(STEPS)
SIGMA = [*(TIMESTEPS / 1000), 0.0]
GRIDS = [(0,), (0, 9), (0, 4), (0, 1, 2, 5), (0, 2, 3, 5, 8), (0, 1, 2, 3, 6, 9), range(STEPS)]


def linear(latents, step):
    """v = A(t) x, with a matrix that turns as sigma falls."""
    draw = np.random.default_rng(0)
    still, turning = draw.normal(size=(2, SIZE, SIZE)) / 2
    return latents @ (still + np.cos(2 * SIGMA[step]) * turning)


def bent(latents, step):
    """A mildly non-linear field."""
    return linear(latents, step) + 0.5 * np.tanh(linear(latents[..., ::-1], STEPS - 1 - step))


def full_runs(velocity, seed=0, images=IMAGES):
    """Sample with all steps full, by Euler's rule."""
    latents = [np.random.default_rng(seed).normal(size=(images, SIZE))]
    for step in range(STEPS):
        move = (SIGMA[step + 1] - SIGMA[step]) * velocity(latents[-1], step)
        latents.append(latents[-1] + move)
    return Runs(np.stack(latents), velocity, TIMESTEPS)


RUNS = {field.__name__: full_runs(field) for field in (linear, bent)}
HELD_OUT = {field.__name__: full_runs(field, seed=1) for field in (linear, bent)}
every_field = pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
every_grid = pytest.mark.parametrize("steps", GRIDS, ids=str)


def kernel_of_runs(runs):
    kernels = [
        Kernel.of_run(
            {"output": [runs.velocity(runs.latents[s, [i]], s)[0] for s in range(STEPS)]},
            TIMESTEPS,
            tap="output",
        )
        for i in range(runs.latents.shape[1])
    ]
    return sum(kernels[1:], kernels[0])


ORDINARY = Kriging(2, 1e-6, ordinary=True)


def plan_of(runs, steps, predictor=ORDINARY):
    return make_plan(Steps(steps), predictor, TIMESTEPS, kernel_of_runs(runs))


def sampled(plan, runs):
    """Sample by a plan, step by step, with its weights: what the runtime does."""
    x, features = runs.latents[0], {}
    for step in range(STEPS):
        if plan.full[step]:
            feature = features[step] = runs.velocity(x, step)
        else:
            feature = sum(plan.weights[step, a] * f for a, f in features.items())
        x = x + (SIGMA[step + 1] - SIGMA[step]) * feature
    return x


def decibels_by_hand(runs, final):
    errors = [np.mean((a - b) ** 2) for a, b in zip(final, runs.latents[-1], strict=True)]
    return np.mean([-10 * np.log10(error) for error in errors])


# ---- Following


@every_field
def test_all_steps_full_is_eulers_rule(runs):
    stands = follow(runs, range(STEPS), None)
    assert len(stands) == STEPS + 1
    for step, stand in enumerate(stands):
        assert np.array_equal(stand.latents, runs.latents[step])
        assert len(stand.features) == step


@every_field
@every_grid
@pytest.mark.parametrize("predictor", [Reuse(), Taylor(1), Newton(2), Kriging(3)], ids=str)
def test_following_a_plan_is_sampling_by_it(runs, steps, predictor):
    plan = plan_of(runs, steps, predictor)
    updates = updates_of(plan)
    followed = follow(runs, plan.full_steps, lambda k, _: updates[k])
    final = followed[-1].latents
    assert np.allclose(final, sampled(plan, runs), rtol=1e-10, atol=1e-12)
    if len(steps) < STEPS:
        expected = decibels_by_hand(runs, sampled(plan, runs))
        assert decibels(runs, plan.full_steps, updates) == pytest.approx(expected, rel=1e-6)


def test_the_network_is_called_at_full_steps_alone():
    calls = []

    def counted(latents, step):
        calls.append(step)
        return bent(latents, step)

    runs = replace(RUNS["bent"], velocity=counted)
    follow(runs, (0, 2, 3, 7), lambda k, stand: np.zeros(1))
    assert calls == [0, 2, 3, 7]


def test_an_update_is_of_the_latest_features():
    """Two numbers are for the last two full steps, and the stand holds what came before the gap."""
    seen = []

    def update(k, stand):
        seen.append((k, stand))
        return np.array([0.25, -0.5])

    runs = RUNS["bent"]
    stands = follow(runs, (0, 1, 4), update)
    assert [k for k, _ in seen] == [1, 2]
    for k, stand in seen:
        a, b = stand.features[-2:]
        assert len(stand.features) == k + 1
        assert np.allclose(stands[k + 1].latents, stand.latents + 0.25 * a - 0.5 * b, rtol=1e-14)


@every_field
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_going_on_from_a_stand_is_following_from_the_beginning(runs, start):
    steps = (0, 2, 3, 5, 8)
    whole = follow(runs, steps, Fit(runs, steps, None))
    onward = follow(runs, steps, Fit(runs, steps, None), whole[start], start)
    assert len(onward) == len(whole) - start
    for mine, expected in zip(onward, whole[start:], strict=True):
        assert np.array_equal(mine.latents, expected.latents)
        assert len(mine.features) == len(expected.features)


def test_decibels_are_the_mean_over_images_not_of_errors():
    runs = RUNS["linear"]
    final = runs.latents[-1] + np.geomspace(1e-4, 1, IMAGES)[:, None]
    expected = np.mean([-20 * np.log10(e) for e in np.geomspace(1e-4, 1, IMAGES)])
    assert runs.decibels(final) == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(runs.decibels(runs.latents[-1]))


# ---- Fitting a gap


@every_field
@every_grid
@pytest.mark.parametrize("anchors", [None, 1, 2, 3])
@pytest.mark.parametrize("jitter", [0.0, 1e-9])
def test_a_gap_is_fitted_by_least_squares_with_the_sum_kept(
    monkeypatch, runs, steps, anchors, jitter
):
    monkeypatch.setattr(closed_loop, "JITTER", jitter)
    fit = Fit(runs, steps, anchors)
    stands = follow(runs, steps, fit)
    ends = [*steps[1:], STEPS]
    assert sorted(fit.updates) == [k for k in range(len(steps)) if ends[k] > steps[k] + 1]
    for k, g in fit.updates.items():
        # Where the sampler is after the full step, and how far the rest of the gap is in sigma.
        features = [feature.ravel() for feature in stands[k + 1].features][-(anchors or STEPS) :]
        step, covered = steps[k], SIGMA[ends[k]] - SIGMA[steps[k] + 1]
        behind = stands[k].latents.ravel() + (SIGMA[step + 1] - SIGMA[step]) * features[-1]
        missing = runs.latents[ends[k]].ravel() - behind
        # Any g of that sum is `even` and something from the null space of the sum.
        even = np.full(len(features), covered / len(features))
        null = np.linalg.svd(np.ones((1, len(features))))[2][1:].T
        basis = np.stack(features, 1)
        free = np.linalg.lstsq(basis @ null, missing - basis @ even, rcond=None)[0]
        best = even + null @ free
        assert g.sum() == pytest.approx(covered, rel=1e-9)
        if jitter == 0:
            assert np.allclose(g, best, rtol=1e-6, atol=1e-7)
        else:  # features are nearly ties here: a little is lost for smaller numbers
            away, least = (np.linalg.norm(basis @ x - missing) for x in (g, best))
            assert least - 1e-12 <= away <= least + 1e-3 * np.linalg.norm(missing)
            assert np.linalg.norm(g) <= np.linalg.norm(best) * 1.001


def test_with_two_anchors_a_fit_reaches_what_two_features_can_reach():
    """A field of two features that do not depend on x: every gap is led back to the full run."""
    f, h = np.random.default_rng(3).normal(size=(2, IMAGES, SIZE))
    runs = full_runs(lambda x, step: f + step**2 * h)
    steps = (0, 3, 6)
    fit = Fit(runs, steps, 2)
    stands = follow(runs, steps, fit)
    assert np.allclose(stands[2].latents, runs.latents[6], atol=1e-6)
    assert np.allclose(stands[3].latents, runs.latents[10], atol=1e-6)


def test_fit_returns_one_update_a_gap():
    runs = RUNS["bent"]
    updates = ClosedLoop(anchors=2).fit(runs, (0, 1, 2, 5, 6))
    assert {k: len(g) for k, g in updates.items()} == {2: 2, 4: 2}
    assert {k: len(g) for k, g in ClosedLoop(anchors=None).fit(runs, (0, 1, 2, 5, 6)).items()} == {
        2: 3,
        4: 5,
    }


# ---- Exchanging full steps


def fitted(runs, steps, anchors=None):
    """Return the decibels of a schedule, fitted and followed from the beginning."""
    return runs.decibels(follow(runs, steps, Fit(runs, steps, anchors))[-1].latents)


def exchanged_by_hand(runs, steps, loop):
    """Move one step at a time, the near places first, and keep whatever is better."""
    steps = list(steps)
    best = fitted(runs, steps, loop.anchors)
    for _ in range(loop.sweeps):
        before = list(steps)
        for i in range(1, len(steps)):
            home = steps[i]
            for far in range(1, loop.reach + 1):
                for place in (home + far, home - far):
                    moved = [*steps[:i], place, *steps[i + 1 :]]
                    if place < STEPS and moved == sorted(set(moved)) and min(moved[1:]) > 0:
                        found = fitted(runs, moved, loop.anchors)
                        if found > best:
                            best, steps = found, moved
        if steps == before:
            break
    return tuple(steps)


STARTS = [(0, 1, 2, 3), (0, 7, 8, 9), (0, 4, 5, 9), (0, 2, 4, 6, 8), (0, 5), (0,), range(STEPS)]


@every_field
@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize(("sweeps", "reach", "anchors"), [(1, 1, None), (1, 3, 2), (3, 2, None)])
def test_exchange_is_as_by_hand_and_never_worse(runs, start, sweeps, reach, anchors):
    loop = ClosedLoop(sweeps=sweeps, reach=reach, anchors=anchors)
    steps = loop.exchange(runs, start)
    assert steps == exchanged_by_hand(runs, start, loop)
    assert len(steps) == len(start) and steps[0] == 0
    assert fitted(runs, steps, anchors) >= fitted(runs, start, anchors)


@every_field
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_after_enough_sweeps_no_neighbour_is_better(runs, start):
    reach = 2
    steps = ClosedLoop(anchors=None, sweeps=50, reach=reach).exchange(runs, start)
    best = fitted(runs, steps)
    for other in combinations(range(1, STEPS), len(steps) - 1):
        moves = [abs(a - b) for a, b in zip(steps[1:], other, strict=True) if a != b]
        if len(moves) == 1 and moves[0] <= reach:
            assert fitted(runs, (0, *other)) <= best


def test_with_one_step_to_place_everywhere_in_reach_exchange_finds_the_best():
    runs = RUNS["bent"]
    best = max(range(1, STEPS), key=lambda step: fitted(runs, (0, step)))
    assert ClosedLoop(anchors=None, reach=STEPS).exchange(runs, (0, 5)) == (0, best)


def test_no_sweeps_keep_the_schedule():
    assert ClosedLoop(sweeps=0).exchange(RUNS["bent"], (0, 7, 8, 9)) == (0, 7, 8, 9)


def test_exchange_calls_the_network_only_from_where_a_step_moves():
    calls = []

    def counted(latents, step):
        calls.append(step)
        return bent(latents, step)

    runs = replace(RUNS["bent"], velocity=counted)
    ClosedLoop(reach=1).exchange(runs, (0, 1, 2, 8))
    # Step 1 has no room to move, step 2 may move to 3 alone, and step 8 to 7 and 9.
    assert (calls.count(0), calls.count(1)) == (1, 2)


# ---- Gauss-Newton

with_gaps = pytest.mark.parametrize("steps", GRIDS[:-1], ids=str)


@every_field
@with_gaps
@pytest.mark.parametrize("anchors", [None, 2])
def test_slopes_are_what_the_final_latents_gain_with_each_coefficient(runs, steps, anchors):
    updates = ClosedLoop(anchors=anchors).fit(runs, steps)
    slopes = slopes_of(runs, steps, updates)
    assert slopes.shape == (sum(map(len, updates.values())), IMAGES, SIZE)

    def final(k, i, change):
        changed = {**updates, k: updates[k] + change * np.eye(len(updates[k]))[i]}
        return follow(runs, steps, lambda k, _: changed[k])[-1].latents

    # A field that is linear in x has final latents that are linear in each coefficient.
    change, close = (1.0, 1e-8) if runs.velocity is linear else (1e-5, 2e-3)
    pairs = [(k, i) for k, g in updates.items() for i in range(len(g))]
    for slope, (k, i) in zip(slopes, pairs, strict=True):
        expected = (final(k, i, change) - final(k, i, -change)) / (2 * change)
        assert np.allclose(slope, expected, rtol=close, atol=close * np.abs(expected).max())


@every_field
@with_gaps
@pytest.mark.parametrize("anchors", [None, 1])
def test_gauss_newton_is_never_worse_on_the_fitted_runs(runs, steps, anchors):
    updates = ClosedLoop(anchors=anchors).fit(runs, steps)
    better = gauss_newton(runs, steps, updates)
    assert decibels(runs, steps, better) >= decibels(runs, steps, updates)
    assert {k: len(g) for k, g in better.items()} == {k: len(g) for k, g in updates.items()}


def test_gauss_newton_gains_where_the_fit_was_from_gap_to_gap():
    runs, steps = RUNS["bent"], (0, 2, 5, 8)
    updates = ClosedLoop(anchors=1).fit(runs, steps)
    gained = decibels(runs, steps, gauss_newton(runs, steps, updates))
    assert gained > decibels(runs, steps, updates) + 1


def forced(images, seed=4):
    """Runs of a network that does not look at x: the final latents are linear in the updates."""
    features = np.random.default_rng(seed).normal(size=(STEPS, images, SIZE))
    return full_runs(lambda x, step: features[step], images=images), features


@pytest.mark.parametrize("images", [1, 3])
def test_gauss_newton_solves_a_linear_problem_in_one_step(images, monkeypatch):
    """It is the least squares of the errors, each image's over the size that it had before."""
    monkeypatch.setattr(closed_loop, "DAMPINGS", (1e-9,))
    runs, features = forced(images)
    steps = (0, 3, 7)
    updates = {0: np.array([-0.1]), 1: np.array([0.2, -0.1]), 2: np.array([0.0, 0.1, -0.3])}
    if images > 1:  # one image that is nearly right already
        last = runs.latents.copy()
        start = follow(runs, steps, lambda k, _: updates[k])[-1].latents
        last[-1, 0] = start[0] + 1e-3 * (last[-1, 0] - start[0])
        runs = replace(runs, latents=last)
    start = follow(runs, steps, lambda k, _: updates[k])[-1].latents
    error = start - runs.latents[-1]
    weight = 1 / np.sqrt(np.mean(error**2, axis=1, keepdims=True))
    system = np.stack([(weight * features[a]).ravel() for a in steps], 1)
    change = np.linalg.lstsq(system, -(weight * error).ravel(), rcond=None)[0]
    best = start + sum(c * features[a] for c, a in zip(change, steps, strict=True))
    assert runs.decibels(best) > runs.decibels(start) + 0.1
    better = gauss_newton(runs, steps, updates)
    mine = follow(runs, steps, lambda k, _: better[k])[-1].latents
    assert np.allclose(mine, best, rtol=1e-5, atol=1e-6)


def test_gauss_newton_takes_slopes_from_elsewhere():
    runs, steps = RUNS["bent"], (0, 2, 5, 8)
    updates = ClosedLoop(anchors=1).fit(runs, steps)
    slopes = slopes_of(runs, steps, updates)
    measured, given = gauss_newton(runs, steps, updates), gauss_newton(runs, steps, updates, slopes)
    assert all(np.array_equal(measured[k], given[k]) for k in updates)
    none = gauss_newton(runs, steps, updates, 1e-9 * slopes)  # no change so large is of any use
    assert all(np.array_equal(updates[k], none[k]) for k in updates)


def test_there_is_nothing_to_polish_where_all_steps_are_full():
    assert ClosedLoop().polish(RUNS["bent"], HELD_OUT["bent"], range(STEPS), {}) == {}


def test_polish_is_judged_by_the_held_out():
    runs, steps = RUNS["bent"], (0, 2, 5, 8)
    updates = ClosedLoop().fit(runs, steps)
    scores = []
    for rounds in range(4):
        polished = ClosedLoop(rounds=rounds).polish(runs, HELD_OUT["bent"], steps, updates)
        scores.append(decibels(HELD_OUT["bent"], steps, polished))
        if rounds == 0:
            assert polished is updates
    assert scores == sorted(scores)
    # What the held-out lose by is not taken: here they want the updates as they are.
    content = full_runs(bent, seed=2)
    reached = follow(content, steps, lambda k, _: updates[k])[-1].latents
    latents = content.latents.copy()
    latents[-1] = reached
    content = replace(content, latents=latents)
    assert ClosedLoop(rounds=3).polish(runs, content, steps, updates) is updates


# ---- Plans and updates


@every_grid
@pytest.mark.parametrize("predictor", [Reuse(), Newton(1), Kriging(3)], ids=str)
def test_updates_are_what_a_plan_adds_over_a_gap(steps, predictor):
    plan = plan_of(RUNS["bent"], steps, predictor)
    updates = updates_of(plan)
    ends = [*steps[1:], STEPS]
    assert sorted(updates) == [k for k in range(len(steps)) if ends[k] > steps[k] + 1]
    for k, g in updates.items():
        for a, mine in zip(steps[: k + 1], g, strict=True):
            gap = range(steps[k] + 1, ends[k])
            expected = sum((SIGMA[s + 1] - SIGMA[s]) * plan.weights[s, a] for s in gap)
            assert mine == pytest.approx(expected, rel=1e-12, abs=1e-15)


@every_grid
@pytest.mark.parametrize("anchors", [None, 1, 2])
def test_weights_with_updates_have_those_updates(steps, anchors):
    runs = RUNS["bent"]
    plan = plan_of(runs, steps)
    updates = ClosedLoop(anchors=anchors).fit(runs, steps)
    before = plan.weights.copy()
    weights = with_updates(plan.weights, TIMESTEPS, steps, updates)
    assert np.array_equal(plan.weights, before)
    found = updates_of(replace(plan, weights=weights))
    assert sorted(found) == sorted(updates)
    for k, g in updates.items():
        assert np.allclose(found[k], [*[0] * (k + 1 - len(g)), *g], rtol=1e-10, atol=1e-13)
    sums = weights.sum(1)[~plan.full]
    assert np.allclose(sums, 1, atol=1e-10)  # the rows' were one, and the updates cover the gaps


def test_weights_keep_what_tells_the_steps_of_a_gap_from_each_other():
    runs, steps = RUNS["bent"], (0, 2, 6)
    plan = plan_of(runs, steps, Newton(1))
    weights = with_updates(plan.weights, TIMESTEPS, steps, ClosedLoop().fit(runs, steps))
    for gap in (range(3, 6), range(7, 10)):
        for s in gap:
            mine, before = weights[s] - weights[gap[0]], plan.weights[s] - plan.weights[gap[0]]
            assert np.allclose(mine, before, atol=1e-13)


@every_grid
def test_a_plans_own_updates_change_nothing(steps):
    plan = plan_of(RUNS["bent"], steps)
    weights = with_updates(plan.weights, TIMESTEPS, steps, updates_of(plan))
    assert np.allclose(weights, plan.weights, rtol=1e-12, atol=1e-14)


# ---- Errors carried to the end


def growing(latents, step):
    """v = 0.7 x / t: a push before step s grows by (1 + 0.7 (t' - t) / t) a step."""
    return 0.7 * latents / SIGMA[step]


@pytest.mark.parametrize("steps", [range(STEPS), (0, 1, 3, 4, 7, 9), (0, 2, 5)], ids=str)
def test_an_error_is_carried_as_the_field_says(steps):
    runs = full_runs(growing)
    plan = plan_of(runs, steps, Reuse())
    expected = {STEPS: 1.0}
    ends = [*steps[1:], STEPS]
    for k in reversed(range(len(steps))):  # reuse moves by one velocity from full step to full step
        factor = 1 + 0.7 * (SIGMA[ends[k]] - SIGMA[steps[k]]) / SIGMA[steps[k]]
        expected[steps[k]] = factor * expected[ends[k]]
    mine = carry(runs, steps, updates_of(plan), probes=STEPS)
    assert mine.shape == (STEPS + 1,)
    for step in (*steps[2:], STEPS):
        assert mine[step] == pytest.approx(expected[step], rel=1e-9)
    known = sorted((*steps[2:], STEPS))
    between = np.interp(range(STEPS + 1), known, [expected[step] for step in known])
    assert np.allclose(mine, between, rtol=1e-9)


def test_earlier_features_know_nothing_of_a_push():
    """Of what Newton's weights sum up, only the velocity after the push has changed."""
    runs, steps = full_runs(growing), (0, 1, 4)
    updates = updates_of(plan_of(runs, steps, Newton(1)))
    pushed = 1 + 0.7 / SIGMA[4] * (SIGMA[5] - SIGMA[4] + updates[2][-1])
    assert carry(runs, steps, updates)[4] == pytest.approx(abs(pushed), rel=1e-9)


@every_field
@pytest.mark.parametrize("budget", [2, 4, 6])
@pytest.mark.parametrize("carried", [False, True])
def test_designs_are_optimal_for_each_candidate(monkeypatch, runs, budget, carried):
    kernel, growth = kernel_of_runs(runs), np.ones(STEPS + 1)
    if carried and budget > 3:  # with fewer full steps there is nothing to measure it by
        growth = np.geomspace(1e4, 1, STEPS + 1)
        monkeypatch.setattr(closed_loop, "carry", lambda *_: growth)
    plan = make_plan(Optimal(budget), Kriging(2), TIMESTEPS, kernel)
    found = designs(runs, plan, kernel.matrix())
    assert all(len(steps) == budget and steps[0] == 0 for steps in found)
    every = [(0, *rest) for rest in combinations(range(1, STEPS), budget - 1)]
    for predictor in CANDIDATES:

        def error(steps, predictor=predictor):
            q = gap_coefficients(make_plan(Steps(steps), predictor, TIMESTEPS, kernel))
            errors = np.sqrt(np.maximum(np.einsum("gs,st,gt->g", q, kernel.matrix(), q), 0))
            return growth[[*steps[1:], STEPS]] @ errors

        assert min(map(error, found)) == pytest.approx(min(map(error, every)), rel=1e-6)


# ---- All of it


@every_field
@pytest.mark.parametrize("budget", range(1, STEPS + 1))
@pytest.mark.parametrize("rounds", [0, 2])
def test_a_refined_plan_is_valid_and_as_good_as_it_says(runs, budget, rounds):
    held_out = HELD_OUT[runs.velocity.__name__]
    kernel = kernel_of_runs(runs)
    plan = make_plan(Optimal(budget), ORDINARY, TIMESTEPS, kernel)
    loop = ClosedLoop(rounds=rounds)
    made = refine(plan, ORDINARY, kernel.matrix(), runs, held_out, loop)  # Plan checks itself
    assert len(made.full_steps) == budget
    assert made.tap == plan.tap and made.model == plan.model
    open_loop_only = set() if np.array_equal(made.weights, plan.weights) else {"predicted error"}
    assert set(made.source) == {*plan.source, "closed loop"} - open_loop_only
    if budget == STEPS:
        assert np.array_equal(made.weights, plan.weights)
        return
    open_loop, closed = (decibels_by_hand(held_out, sampled(p, held_out)) for p in (plan, made))
    assert closed >= open_loop
    told = f"held-out latents: {open_loop:.2f} dB in open loop, {closed:.2f} dB in closed loop"
    assert told in made.source["closed loop"] or closed == open_loop
    updates, ends = updates_of(made), [*made.full_steps[1:], STEPS]
    for k, g in updates.items():
        covered = SIGMA[ends[k]] - SIGMA[made.full_steps[k] + 1]
        rows = made.weights[made.full_steps[k] + 1 : ends[k]].sum(1)
        assert np.allclose(rows, g.sum() / covered, rtol=1e-9)
        if rounds == 0:  # the fit keeps the sum, Gauss-Newton need not
            assert np.allclose(rows, 1, rtol=1e-9)


def test_refining_gains():
    runs, held_out = RUNS["bent"], HELD_OUT["bent"]
    kernel = kernel_of_runs(runs)
    plan = make_plan(Optimal(4), ORDINARY, TIMESTEPS, kernel)
    made = refine(plan, ORDINARY, kernel.matrix(), runs, held_out, ClosedLoop())
    gain = decibels_by_hand(held_out, sampled(made, held_out))
    assert gain > decibels_by_hand(held_out, sampled(plan, held_out)) + 1


@every_field
def test_the_start_is_the_best_of_the_plan_and_the_designs(runs):
    kernel = kernel_of_runs(runs)
    plan = make_plan(Steps([0, 7, 8, 9]), ORDINARY, TIMESTEPS, kernel)  # as bad as can be
    loop = ClosedLoop(sweeps=0, rounds=0)
    made = refine(plan, ORDINARY, kernel.matrix(), runs, HELD_OUT[runs.velocity.__name__], loop)
    starts = {plan.full_steps} | designs(runs, plan, kernel.matrix())
    best = max(starts, key=lambda steps: fitted(runs, steps, loop.anchors))
    assert made.full_steps == best != plan.full_steps


class Spoilt(ClosedLoop):
    """A closed loop that fits well and then spoils the updates."""

    def polish(self, runs, held_out, steps, updates):
        return {k: 0 * g for k, g in updates.items()}


def test_a_plan_that_gains_nothing_is_returned_as_it_was():
    runs = RUNS["bent"]
    kernel = kernel_of_runs(runs)
    plan = make_plan(Optimal(4), ORDINARY, TIMESTEPS, kernel)
    made = refine(plan, ORDINARY, kernel.matrix(), runs, HELD_OUT["bent"], Spoilt())
    assert np.array_equal(made.full, plan.full)
    assert np.array_equal(made.weights, plan.weights)
    assert "in closed loop" in made.source["closed loop"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tap": "modules"}, "at the output tap, this is at 'modules'"),
        ({"timesteps": flow_timesteps(STEPS, shift=2.0)}, "was made for timestep"),
    ],
)
def test_a_plan_for_something_else_is_refused(changes, message):
    runs = RUNS["bent"]
    plan = replace(plan_of(runs, (0, 3, 5)), **changes)
    with pytest.raises(PlanError, match=message):
        refine(plan, Reuse(), np.eye(STEPS), runs, runs, ClosedLoop())


@pytest.mark.parametrize(
    "options",
    [
        {"anchors": 0},
        {"anchors": 2.0},
        {"sweeps": -1},
        {"sweeps": True},
        {"reach": 0},
        {"rounds": -1},
        {"held_out": 0},
        {"batch": 0},
        {"batch": "16"},
    ],
)
def test_an_invalid_option_is_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ClosedLoop(**options)

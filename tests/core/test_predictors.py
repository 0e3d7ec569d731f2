"""Predictors: against slow implementations of the published formulas, and what they reproduce."""

from math import factorial, sqrt

import numpy as np
import pytest
from helpers import flow_timesteps, kernel_of, random_trajectories

from eigencache.predictors import (
    Chebyshev,
    HiCache,
    Kriging,
    Newton,
    Reuse,
    Taylor,
    TaylorScaled,
)

STEPS = 14
TIMESTEPS = flow_timesteps(STEPS)
MATRIX = kernel_of(random_trajectories(TIMESTEPS), TIMESTEPS).matrix()
# Uneven on purpose, and with gaps that differ from each other.
GRIDS = [[0, 1], [2, 6], [0, 1, 2], [0, 1, 4], [1, 2, 5, 9], [0, 3, 4, 8]]
PREDICTORS = [
    Reuse(), Taylor(0), Taylor(1), Taylor(2), HiCache(1), HiCache(2), HiCache(3, 0.7),
    TaylorScaled(0), TaylorScaled(2), TaylorScaled(3, 0.8), Newton(0), Newton(1), Newton(2),
    Chebyshev(), Chebyshev(2, 0.5), Kriging(1), Kriging(3), Kriging(3, 1e-6, ordinary=True),
    Kriging(None), Kriging(3, phases=(5, 11)), Kriging(None, 1e-6, True, phases=[4]),
]  # fmt: skip


def forecast(predictor, past, step, features):
    """Return the forecast from the last steps of `past` that the predictor wants."""
    past = np.array(past if predictor.window is None else past[-predictor.window :])
    weights = predictor.weights(past, step, TIMESTEPS, MATRIX if predictor.kernel else None)
    return weights @ features[past]


class Differences:
    """TaylorSeer's state: at each full step, every difference is renewed from the one before."""

    def __init__(self, past, features, order):
        self.last, self.orders = None, []
        for step in past:
            renewed = [features[step]]
            for k in range(order if self.last is not None else 0):
                if k < len(self.orders):
                    renewed.append((renewed[k] - self.orders[k]) / (step - self.last))
            self.last, self.orders = step, renewed


def hermite(k, u):
    """The physicists' Hermite polynomials by their recurrence."""
    if k < 2:
        return (2 * u) ** k
    return 2 * u * hermite(k - 1, u) - 2 * (k - 1) * hermite(k - 2, u)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylor_is_the_recursion_of_taylorseer(past, order):
    features = random_trajectories(TIMESTEPS, runs=1, roughness=1.0)[0]
    state = Differences(past, features, order)
    for step in range(past[-1] + 1, STEPS):
        expected = 0
        for k, difference in enumerate(state.orders):
            expected = expected + (step - past[-1]) ** k / factorial(k) * difference
        assert np.allclose(forecast(Taylor(order), past, step, features), expected, rtol=1e-10)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize(("order", "scale"), [(1, 0.5), (2, 0.5), (2, 0.7), (3, 0.6)])
def test_hicache_is_a_hermite_series_of_the_same_differences(past, order, scale):
    features = random_trajectories(TIMESTEPS, runs=1, roughness=1.0)[0]
    state = Differences(past, features, order)
    for step in range(past[-1] + 1, STEPS):
        expected = features[past[-1]].copy()
        for k, difference in enumerate(state.orders[1:], start=1):
            basis = scale**k * hermite(k, scale * (step - past[-1])) / factorial(k)
            expected += basis * difference
        assert np.allclose(forecast(HiCache(order, scale), past, step, features), expected)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize(("order", "scale"), [(1, 0.5), (2, 0.5), (2, 1.3), (3, 0.6)])
def test_taylor_scaled_damps_the_kth_term_by_the_scale_to_the_2k(past, order, scale):
    features = random_trajectories(TIMESTEPS, runs=1, roughness=1.0)[0]
    state = Differences(past, features, order)
    for step in range(past[-1] + 1, STEPS):
        expected = 0
        for k, difference in enumerate(state.orders):
            term = (step - past[-1]) ** k / factorial(k) * difference
            expected = expected + scale ** (2 * k) * term
        assert np.allclose(forecast(TaylorScaled(order, scale), past, step, features), expected)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_taylor_scaled_by_one_is_taylor(past, order):
    scaled, plain = TaylorScaled(order, 1.0), Taylor(order)
    past = past[-plain.window :]
    assert np.allclose(
        scaled.weights(past, 12, TIMESTEPS), plain.weights(past, 12, TIMESTEPS), rtol=1e-13
    )


def test_hicache_moves_forward_with_a_rising_feature():
    rising = np.arange(STEPS, dtype=float)[:, None]
    for step in (6, 7, 9):
        assert forecast(HiCache(2), [1, 3, 5], step, rising) > 5


def test_hicache_of_order_one_is_taylor_at_one_scale():
    features = random_trajectories(TIMESTEPS, runs=1)[0]
    mine = forecast(HiCache(1, 1 / sqrt(2)), [2, 5], 9, features)
    assert np.allclose(mine, forecast(Taylor(1), [2, 5], 9, features), rtol=1e-12)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_newton_is_the_polynomial_through_the_last_steps(past, order):
    features = random_trajectories(TIMESTEPS, runs=1, size=3)[0]
    used = np.array(past)[-(order + 1) :]
    for step in range(past[-1] + 1, STEPS):
        powers = np.vander(TIMESTEPS[used] / 1000, len(used))
        coefficients = np.linalg.solve(powers, features[used])
        expected = np.vander([TIMESTEPS[step] / 1000], len(used))[0] @ coefficients
        assert np.allclose(forecast(Newton(order), past, step, features), expected, rtol=1e-6)


@pytest.mark.parametrize("past", GRIDS)
def test_reuse_repeats_the_latest(past):
    features = random_trajectories(TIMESTEPS, runs=1)[0]
    assert np.array_equal(forecast(Reuse(), past, STEPS - 1, features), features[past[-1]])


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize(("degree", "ridge"), [(0, 0.1), (2, 0.1), (4, 0.1), (4, 1e-3), (4, 10.0)])
def test_chebyshev_is_a_ridge_regression_on_cosines(past, degree, ridge):
    features = random_trajectories(TIMESTEPS, runs=1, size=3)[0]
    place = np.array([2 * step / (STEPS - 1) - 1 for step in range(STEPS)])
    phi = np.stack([np.cos(k * np.arccos(place)) for k in range(degree + 1)], axis=1)
    system = np.vstack([phi[past], sqrt(ridge) * np.eye(degree + 1)])
    wanted = np.vstack([features[past], np.zeros((degree + 1, 3))])
    coefficients = np.linalg.lstsq(system, wanted, rcond=None)[0]
    for step in range(past[-1] + 1, STEPS):
        mine = forecast(Chebyshev(degree, ridge), past, step, features)
        assert np.allclose(mine, phi[step] @ coefficients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_chebyshev_with_next_to_no_ridge_reproduces_polynomials_in_the_step(degree):
    curve = np.polyval([2.0, -1.0, 0.5, 3.0][: degree + 1], np.arange(STEPS) / STEPS)[:, None]
    mine = forecast(Chebyshev(degree, 1e-12), [0, 3, 4, 8], 12, curve)
    assert np.allclose(mine, curve[12], rtol=1e-5)


# A ridge or a jitter draws forecasts towards zero, unless the weights must sum to one.
SUM_TO_ONE = [
    p for p in PREDICTORS if not isinstance(p, Chebyshev) and (not p.kernel or p.ordinary)
]


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("predictor", SUM_TO_ONE, ids=str)
def test_constants_are_reproduced(predictor, past):
    constant = np.full((STEPS, 2), 3.5)
    assert np.allclose(forecast(predictor, past, STEPS - 1, constant), 3.5, rtol=1e-9)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_reproduces_what_is_linear_in_the_step(past, order):
    line = 3 - 0.5 * np.arange(STEPS, dtype=float)[:, None]
    assert np.allclose(forecast(Taylor(order), past, 12, line), line[12], rtol=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_newton_reproduces_polynomials_in_the_timestep(degree):
    curve = np.polyval([2.0, -1.0, 0.5, 3.0][: degree + 1], TIMESTEPS / 1000)[:, None]
    assert np.allclose(forecast(Newton(degree), [0, 3, 4, 8], 12, curve), curve[12], rtol=1e-7)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_one_full_step_suffices(predictor):
    features = np.ones((STEPS, 2))
    # The ridge draws five coefficients of a single value towards zero.
    tolerance = 0.9 if isinstance(predictor, Chebyshev) else 0.1
    assert forecast(predictor, [0], 1, features) == pytest.approx(1, rel=tolerance)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("jitter", [1e-1, 1e-3, 1e-5])
def test_kriging_is_the_ridge_regression_of_the_trajectories(past, jitter):
    features = random_trajectories(TIMESTEPS, runs=5)
    matrix = kernel_of(features, TIMESTEPS).matrix()
    known = np.concatenate(list(features), axis=1).T / 10  # 5 runs of 20 numbers: sqrt(100)
    ridge = sqrt(jitter * np.mean((known[:, past] ** 2).sum(0))) * np.eye(len(past))
    for step in range(past[-1] + 1, STEPS):
        system = np.vstack([known[:, past], ridge])
        wanted = np.append(known[:, step], np.zeros(len(past)))
        expected = np.linalg.lstsq(system, wanted, rcond=None)[0]
        mine = Kriging(len(past), jitter).weights(past, step, TIMESTEPS, matrix)
        assert np.allclose(mine, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("jitter", [1e-1, 1e-3, 1e-5])
def test_ordinary_kriging_solves_the_same_problem_with_weights_that_sum_to_one(past, jitter):
    size = len(past)
    among = MATRIX[np.ix_(past, past)]
    system = np.ones((size + 1, size + 1))
    system[:size, :size] = among + jitter * np.diag(among).mean() * np.eye(size)
    system[size, size] = 0
    for step in range(past[-1] + 1, STEPS):
        expected = np.linalg.solve(system, np.append(MATRIX[past, step], 1))[:size]
        mine = Kriging(size, jitter, ordinary=True).weights(past, step, TIMESTEPS, MATRIX)
        assert mine.sum() == pytest.approx(1, abs=1e-9)
        assert np.allclose(mine, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ordinary", [False, True])
def test_kriging_does_not_depend_on_the_size_of_features(ordinary):
    predictor = Kriging(3, 1e-3, ordinary)
    small, large = (predictor.weights([0, 2, 5], 7, TIMESTEPS, MATRIX * x) for x in (1e-8, 1e8))
    assert np.allclose(small, large, rtol=1e-9)


@pytest.mark.parametrize("past", GRIDS)
@pytest.mark.parametrize("phases", [(1,), (4,), (5, 9), [2, 4, 6, 8, 10, 12], (9,), (13,)])
@pytest.mark.parametrize("ordinary", [False, True])
def test_a_phase_is_kriged_from_its_own_full_steps_alone(past, phases, ordinary):
    def phase(step):
        return sum(step >= start for start in phases)

    predictor = Kriging(None, 1e-3, ordinary, phases)
    alone = Kriging(None, 1e-3, ordinary)
    for step in range(past[-1] + 1, STEPS):
        weights = predictor.weights(past, step, TIMESTEPS, MATRIX)
        own = [phase(a) == phase(step) for a in past]
        expected = np.zeros(len(past))
        if any(own):
            expected[own] = alone.weights(np.array(past)[own], step, TIMESTEPS, MATRIX)
        else:
            expected[-1] = 1
        assert np.allclose(weights, expected, rtol=1e-9, atol=1e-12)
        assert not weights[~np.array(own)][:-1].any()  # not even by rounding


def test_phases_that_no_step_separates_change_nothing():
    past = [2, 5, 7]
    plain = Kriging(3).weights(past, 9, TIMESTEPS, MATRIX)
    for phases in [(), (2,), (1, 2), (10,), (20,)]:
        mine = Kriging(3, phases=phases).weights(past, 9, TIMESTEPS, MATRIX)
        assert np.allclose(mine, plain, rtol=1e-12)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_many_windows_at_once_are_each_as_alone(predictor):
    size = predictor.window or 4
    windows = np.array([range(first, first + 2 * size, 2) for first in range(3)])
    steps = np.arange(10, STEPS)
    matrix = MATRIX if predictor.kernel else None
    together = predictor.weights(windows[:, None, :], steps[None, :], TIMESTEPS, matrix)
    assert together.shape == (3, 4, size)
    for i, window in enumerate(windows):
        for j, step in enumerate(steps):
            alone = predictor.weights(window, step, TIMESTEPS, matrix)
            assert alone.shape == (size,)
            assert np.allclose(together[i, j], alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("predictor", "options"),
    [
        (Taylor, {"order": -1}),
        (Taylor, {"order": 1.5}),
        (Taylor, {"order": True}),
        (Taylor, {"order": "2"}),
        (HiCache, {"order": -1}),
        (HiCache, {"scale": 0}),
        (HiCache, {"scale": float("nan")}),
        (HiCache, {"scale": True}),
        (HiCache, {"scale": "0.5"}),
        (TaylorScaled, {"order": -1}),
        (TaylorScaled, {"scale": 0}),
        (TaylorScaled, {"scale": "0.5"}),
        (Chebyshev, {"degree": -1}),
        (Chebyshev, {"degree": 2.0}),
        (Chebyshev, {"ridge": 0}),
        (Chebyshev, {"ridge": float("inf")}),
        (Newton, {"order": -1}),
        (Kriging, {"window": 0}),
        (Kriging, {"window": 2.0}),
        (Kriging, {"jitter": 0.0}),
        (Kriging, {"jitter": -1e-3}),
        (Kriging, {"jitter": float("inf")}),
        (Kriging, {"jitter": "small"}),
        (Kriging, {"ordinary": "no"}),
        (Kriging, {"ordinary": 1}),
        (Kriging, {"phases": 4}),
        (Kriging, {"phases": "4"}),
        (Kriging, {"phases": [0, 4]}),
        (Kriging, {"phases": [4, 2]}),
        (Kriging, {"phases": [4, 4]}),
        (Kriging, {"phases": [4.5]}),
    ],
)
def test_an_invalid_option_is_named(predictor, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        predictor(**options)

"""Bootstrap intervals: their coverage, their symmetries, other ways to them, and their edges."""

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from eigencache.metrics import statistics
from eigencache.metrics.statistics import (
    FEWEST,
    LEVEL,
    Interval,
    differences,
    mean_interval,
    median_interval,
)

DRAWS = {
    "normal": (lambda draw, n: draw.normal(size=n), 0.0, 0.0),
    "skewed": (lambda draw, n: draw.lognormal(sigma=0.5, size=n), np.exp(0.125), 1.0),
}


@pytest.fixture
def values():
    return np.random.default_rng(1).lognormal(sigma=0.5, size=24)


# ---- What an interval is


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("count", [8, 24])
def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch, kind, count):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    draw, (sample, mean, median) = np.random.default_rng(0), DRAWS[kind]
    trials = [sample(draw, count) for _ in range(400)]
    means, medians = map(mean_interval, trials), map(median_interval, trials)
    hits = {
        "mean": np.mean([low <= mean <= high for _, low, high in means]),
        "median": np.mean([low <= median <= high for _, low, high in medians]),
    }
    # Of few skewed values an interval of the mean is known to fall short.
    least = 0.88 if (kind, count) == ("skewed", 8) else 0.91
    assert all(least < hit < 0.985 for hit in hits.values()), hits


@pytest.mark.parametrize("count", [8, 24, 500])
def test_of_normal_values_the_mean_has_students_interval(count):
    # Equally far quantiles are as normal as so many values can be.
    values = 30 + 2 * norm.ppf((np.arange(count) + 0.5) / count)
    reach = t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)
    found = mean_interval(values)
    assert found.value == pytest.approx(30)
    assert (found.low, found.high) == pytest.approx((30 - reach, 30 + reach), abs=0.07 * reach)


def test_a_bootstrap_by_hand_gives_the_same(values):
    draw, count = np.random.default_rng(5), len(values)
    means = np.sort([draw.choice(values, count).mean() for _ in range(20_000)])
    share = norm.sf(t.ppf(0.975, count - 1) * np.sqrt(count / (count - 1)))
    low, high = means[int(share * len(means))], means[int((1 - share) * len(means))]
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))


def test_the_interval_of_a_median_is_near_that_of_order_statistics(values):
    ordered, count = np.sort(values), len(values)
    rank = int(binom.ppf(0.025, count, 0.5))  # the exact interval, from each end
    found = median_interval(values)
    assert ordered[rank - 2] <= found.low <= ordered[rank + 1]
    assert ordered[-rank - 2] <= found.high <= ordered[-rank + 1]
    assert found.value == np.median(values)


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
@pytest.mark.parametrize(("scale", "shift"), [(1, 7.5), (10, 0), (0.01, -3), (-2, 1)])
def test_interval_moves_and_grows_with_its_values(values, interval, scale, shift):
    found, expected = interval(scale * values + shift), interval(values)
    ends = sorted([scale * expected.low + shift, scale * expected.high + shift])
    assert found.value == pytest.approx(scale * expected.value + shift)
    assert [found.low, found.high] == pytest.approx(ends)


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_interval_repeats_to_the_bit_and_holds_its_value(values, interval):
    assert interval(values) == interval(values.copy())
    value, low, high = interval(values)
    assert low < value < high


def test_four_times_the_values_have_half_the_interval(values):
    once, often = mean_interval(values), mean_interval(np.tile(values, 4))
    assert (often.high - often.low) == pytest.approx((once.high - once.low) / 2, rel=0.1)


# ---- Where there is none


def without_ends(found):
    return np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
@pytest.mark.parametrize("count", range(FEWEST))
def test_too_few_values_have_no_interval(interval, count):
    found = interval(np.arange(count))
    assert without_ends(found) and found.sign == 0
    assert found.value == (count - 1) / 2 if count else np.isnan(found.value)


def test_fewest_is_where_the_range_can_reach_the_level():
    assert 2.0 ** (1 - FEWEST) < 1 - LEVEL < 2.0 ** (2 - FEWEST)


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
@pytest.mark.parametrize("value", [0, 31.4, 0.1, np.inf, -np.inf])
def test_equal_values_are_their_own_interval(interval, value):
    assert interval([value] * FEWEST) == (value, value, value)


@pytest.mark.parametrize(
    ("extremes", "mean"),
    [([np.inf], np.inf), ([-np.inf] * 3, -np.inf), ([np.inf, -np.inf], np.nan)],
)
def test_infinite_values_among_others_leave_no_interval(values, extremes, mean):
    found = mean_interval([*values, *extremes])
    assert found.value == pytest.approx(mean, nan_ok=True)
    assert without_ends(found) and found.sign == 0


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_what_is_not_a_number_is_refused(values, interval):
    with pytest.raises(ValueError, match="2 of 26 values are not numbers"):
        interval([*values, np.nan, np.nan])


# ---- Pairs


def test_differences_are_paired_and_equal_infinities_differ_by_nothing():
    found = differences([1, np.inf, np.inf, 3], [4, np.inf, 2, np.inf])
    np.testing.assert_array_equal(found, [-3, 0, np.inf, -np.inf])


def test_pairing_takes_out_what_prompts_differ_in():
    draw = np.random.default_rng(3)
    prompts, noise = draw.normal(40, 8, 24), draw.normal(0.5, 0.3, 24)
    paired = mean_interval(differences(prompts + noise, prompts))
    assert paired.sign == 1
    assert mean_interval(prompts).high - mean_interval(prompts).low > 10 * (
        paired.high - paired.low
    )


@pytest.mark.parametrize(
    ("ends", "sign"),
    [((1, 2), 1), ((-2, -1), -1), ((-1, 1), 0), ((0, 1), 0), ((-1, 0), 0), ((0, 0), 0),
     ((np.nan, np.nan), 0), ((np.inf, np.inf), 1)],
)  # fmt: skip
def test_sign_is_that_of_the_whole_interval(ends, sign):
    assert Interval(0.5, *ends).sign == sign

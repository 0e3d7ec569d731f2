"""Checks of options: what is let through, and what the message says otherwise."""

import re
from fractions import Fraction

import numpy as np
import pytest

from eigencache._checks import check_range, check_real, check_whole

NO_NUMBERS = [None, "1", True, False, [1], 1j, float("nan"), float("inf"), np.nan]


@pytest.mark.parametrize("value", [2, 3, 10**30, np.int64(2), np.uint8(7)])
def test_a_whole_number_passes(value):
    check_whole("count", value, low=2)


@pytest.mark.parametrize("value", [1, -2, 2.0, np.float64(3), *NO_NUMBERS])
def test_what_is_no_whole_number_is_named_with_its_value(value):
    message = f"count must be a whole number of at least 2, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_whole("count", value, low=2)


@pytest.mark.parametrize("value", [0.1, 1, 1e300, np.float32(0.5), np.int64(1)])
def test_a_number_above_the_bound_passes(value):
    check_real("scale", value, above=0)


@pytest.mark.parametrize("value", [0, 0.0, -1, -1e-300, Fraction(1, 2), *NO_NUMBERS])
def test_what_is_not_above_the_bound_is_named_with_its_value(value):
    message = f"scale must be a finite number above 0, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_real("scale", value, above=0)


@pytest.mark.parametrize("value", [0, 0.0, 0.3, 1, np.float64(1)])
def test_a_number_within_the_bounds_passes(value):
    check_range("share", value, 0, 1)


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, *NO_NUMBERS])
def test_what_is_out_of_bounds_is_named_with_its_value(value):
    message = f"share must be a finite number of at least 0 and at most 1, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_range("share", value, 0, 1)


def test_a_range_may_have_no_upper_end():
    check_range("weight", 1e300, 0)
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got -1"):
        check_range("weight", -1, 0)

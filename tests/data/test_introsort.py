import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_data.introsort import argsort, introsort

needs_wide_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant,
    reason="long double is double here: no scalar numpy sort",
)


def scalar_argsort(values):
    return np.argsort(np.array(values, np.longdouble)).tolist()


@needs_wide_long_double
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(1, 50), st.randoms(use_true_random=False))
def test_port_orders_ties_as_scalar_numpy(size, distinct, rng):
    values = [float(rng.randrange(distinct)) for _ in range(size)]
    assert introsort(values) == scalar_argsort(values)


@needs_wide_long_double
def test_port_falls_back_to_the_same_heapsort_when_the_pivots_are_bad():
    values = _median_of_three_killer(2000)
    assert introsort(values) == scalar_argsort(values)
    tied = [value // 3 for value in values]  # reaches the heapsort too, now with equal values
    assert introsort(tied) == scalar_argsort(tied)


def test_runs_of_at_most_16_values_are_sorted_stably():
    rng = random.Random(0)
    for size in range(17):
        values = [float(rng.randrange(3)) for _ in range(size)]
        assert argsort(np.array(values)).tolist() == sorted(range(size), key=values.__getitem__) == introsort(values)


def test_longer_runs_are_not_stable():
    values = [0.0] * 17  # partitioning moves equal values; a stable sort would keep 0..16
    assert argsort(np.array(values)).tolist() == introsort(values) != list(range(17))


def _median_of_three_killer(size):
    """1, m+1, 3, m+3, …, then 2, 4, 6, …: first, middle and last value are always among the smallest left."""
    half = size // 2
    odd = [n if n % 2 else half + n - 1 for n in range(1, half + 1)]
    return [float(value) for value in odd + list(range(2, size + 1, 2))]

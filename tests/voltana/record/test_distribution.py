"""Mean and percentiles, exact for few numbers and close for many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voltana.record.distribution
from voltana.record.distribution import RESOLUTION, Distribution

SHARES = (0.0, 1.0, 50.0, 90.0, 99.0, 100.0)
numbers = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200)


def taken(values: list[float]) -> Distribution:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    return distribution


@given(numbers)
def test_few_numbers_are_kept_exactly(values: list[float]) -> None:
    distribution = taken(values)
    assert len(distribution) == len(values)
    assert distribution.mean() == np.mean(values)
    assert distribution.percentiles(SHARES) == tuple(np.percentile(values, SHARES))


@given(values=numbers, kept=st.integers(1, 20))
def test_of_many_numbers_a_percentile_is_off_by_half_a_bucket(values: list[float], kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voltana.record.distribution, "EXACT", kept)
        distribution = taken(values)
        assert len(distribution) == len(values)
        assert distribution.mean() == pytest.approx(np.mean(values), rel=1e-9)
        found = distribution.percentiles(SHARES)
    exact = np.percentile(values, SHARES, method="lower") if len(values) > kept else np.percentile(values, SHARES)
    assert found == pytest.approx(exact, rel=0.51 * RESOLUTION)


def test_memory_is_bounded() -> None:
    distribution = Distribution()
    for _ in range(3 * voltana.record.distribution.EXACT):
        distribution.add(0.5)
    assert len(distribution._values) <= voltana.record.distribution.EXACT
    assert distribution.percentiles((50.0,)) == pytest.approx((0.5,), rel=RESOLUTION)


def test_what_lies_outside_the_histogram_counts_as_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voltana.record.distribution, "EXACT", 1)
    low, high = taken([0.0, 0.0, 1e12]).percentiles((0.0, 100.0))
    assert (low, high) == pytest.approx((1e-9, 1e9), rel=RESOLUTION)

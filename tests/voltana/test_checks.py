"""Checks pass what is allowed unchanged and name what is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana import checks
from voltana.errors import UserError

EVEN = tuple(range(210, 1411, 15))
UNEVEN = (1005, 1095, 1200)


@given(st.integers(-50, 50) | st.floats(-50, 50), st.integers(-20, 20), st.integers(0, 30))
def test_a_number_passes_within_its_bounds_only(value: float, low: int, width: int) -> None:
    bounds = [{"low": low, "high": low + width}, {"above": low, "high": low + width}]
    for kind in bounds:
        inside = low <= value <= low + width and ("low" in kind or value > low)
        try:
            assert checks.number("x", value, **kind) == value
            assert inside
        except UserError:
            assert not inside


@pytest.mark.parametrize("value", [None, "1", True, [1], float("nan")])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"^gain: found .*, allowed: a number >= 0 and <= 9$"):
        checks.number("gain", value, low=0, high=9)


@given(st.lists(st.sampled_from(EVEN), min_size=1))
def test_levels_come_ascending_each_once(values: list[int]) -> None:
    assert checks.levels("levels_mhz", values, EVEN) == tuple(sorted(set(values)))


@pytest.mark.parametrize(
    ("supported", "words"),
    [(EVEN, "210 to 1410 MHz in steps of 15"), (UNEVEN, "1005, 1095, 1200 MHz"), ((1410,), "1410 MHz")],
)
def test_clocks_in_words(supported: tuple[int, ...], words: str) -> None:
    assert checks.describe_clocks(supported) == words
    with pytest.raises(UserError, match=rf"^clock_mhz: found 7, allowed: {words}$"):
        checks.clock("clock_mhz", 7, supported)


def test_a_range_of_levels_is_all_the_gpu_has_in_between() -> None:
    assert checks.levels("levels_mhz", "1005..1050", range(210, 1411, 15)) == (1005, 1020, 1035, 1050)


@pytest.mark.parametrize("bad", ["1005..1411", "1410..1005", "1005..", "all"])
def test_a_range_that_is_none(bad: str) -> None:
    with pytest.raises(UserError, match="levels_mhz: found "):
        checks.levels("levels_mhz", bad, range(210, 1411, 15))

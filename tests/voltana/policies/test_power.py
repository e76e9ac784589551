"""The cubic power law."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.power_model import CubicPower

CLOCKS = tuple(range(210, 1411, 15))


@given(st.floats(0, 1), st.sampled_from(CLOCKS), st.sampled_from(CLOCKS))
def test_power_rises_with_the_clock_between_the_static_share_and_one(share: float, one: int, other: int) -> None:
    power = CubicPower(CLOCKS, share)
    low, high = power.at(min(one, other)), power.at(max(one, other))
    assert share <= low <= high <= power.at(1410) == pytest.approx(1.0)


def test_without_a_static_share_half_the_clock_draws_an_eighth() -> None:
    assert CubicPower(CLOCKS, 0.0).at(705) == pytest.approx(1 / 8)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"static_share: found 1\.5"):
        CubicPower(CLOCKS, 1.5)

"""Highest clock while busy, lowest when idle."""

import math

import pytest

from voltana.errors import UserError
from voltana.rivals.governor import Governor
from voltana.state import Decision, LoadSnapshot

BUSY = LoadSnapshot(10.0, 210, 4, 100, 0, 0, 0.0, 0.0, 0, 0)
IDLE = BUSY._replace(batch_size=0, batch_tokens=0, idle_s=0.3)


def test_busy_is_the_highest_clock_for_ever_and_asks_when_idle(clocks: tuple[int, ...]) -> None:
    assert Governor(clocks, idle_s=0.3).decide(BUSY) == Decision(1410, 0.3, math.inf)


@pytest.mark.parametrize("idle_s", [0.3, math.inf])
def test_idle_and_before_the_first_work_it_is_the_lowest_clock(clocks: tuple[int, ...], idle_s: float) -> None:
    assert Governor(clocks, idle_s=0.3).decide(IDLE._replace(idle_s=idle_s)) == Decision(210)


def test_an_idle_time_of_nothing_is_refused(clocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"idle_s: found 0, allowed: a number > 0"):
        Governor(clocks, idle_s=0)

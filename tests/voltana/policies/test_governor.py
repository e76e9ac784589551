"""The highest clock; without the boost the lowest when idle."""

import math
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.governor import Governor
from voltana.state import Decision, LoadSnapshot

BUSY = LoadSnapshot(10.0, 210, 4, 100, 0, 0, 0.0, 0.0, 0, 0)
IDLE = BUSY._replace(batch_size=0, batch_tokens=0, idle_s=0.3)


@pytest.mark.parametrize("load", [BUSY, IDLE, IDLE._replace(idle_s=math.inf)])
def test_with_a_context_loaded_it_is_the_highest_clock_for_ever(clocks: tuple[int, ...], load: LoadSnapshot) -> None:
    assert Governor(clocks, **shipped("frequency/governor")).decide(load) == Decision(1410, None, math.inf)


def test_without_the_boost_busy_is_the_highest_clock_and_asks_when_idle(clocks: tuple[int, ...]) -> None:
    assert Governor(clocks, perf_boost=False, idle_s=0.3).decide(BUSY) == Decision(1410, 0.3, math.inf)


@pytest.mark.parametrize("idle_s", [0.3, math.inf])
def test_without_the_boost_idle_and_before_the_first_work_it_is_the_lowest_clock(
    clocks: tuple[int, ...], idle_s: float
) -> None:
    assert Governor(clocks, perf_boost=False, idle_s=0.3).decide(IDLE._replace(idle_s=idle_s)) == Decision(210)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [({"idle_s": 0}, "idle_s: found 0, allowed: a number > 0"), ({"perf_boost": 1}, "perf_boost: found 1, allowed: ")],
)
def test_a_bad_parameter_is_named(clocks: tuple[int, ...], parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Governor(clocks, **shipped("frequency/governor", **parameters))

"""Each rule of the oracle on truths made by hand, then what it promises."""

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.oracle import Oracle
from voltana.state import LoadSnapshot, Phase, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)


class Valley:
    """Work that takes 1/f of its time at the highest clock; power is a base and a cube. Joules are a valley."""

    def __init__(self, seconds_at_top: float = 0.02, base_w: float = 70.0, dynamic_w: float = 300.0) -> None:
        self.seconds_at_top, self.base_w, self.dynamic_w = seconds_at_top, base_w, dynamic_w
        self.asked = 0

    def cost(self, clock_mhz: int) -> tuple[float, float]:
        """As `voltana.sim.serving.truth.Truth`."""
        self.asked += 1
        share = clock_mhz / CLOCKS[-1]
        seconds = self.seconds_at_top / share
        return seconds, seconds * (self.base_w + self.dynamic_w * share**3)


def oracle(truth: Valley, phase: Phase = "decode", **parameters: Any) -> Oracle:
    return Oracle(phase, SLO, CLOCKS, truth, **shipped("frequency/oracle", **parameters))


def snapshot(batch: int = 10, queued: int = 0, wait_s: float = 0.0) -> LoadSnapshot:
    return LoadSnapshot(1.0, 1410, batch, 100 * batch, queued, 0, wait_s, 0.0 if batch else math.inf, 99, 999)


SWEET = 690  # the least joules of `Valley()`: x^3 = base / (2 dynamic)


@pytest.mark.parametrize(
    ("truth", "phase", "load", "expected"),
    [
        (Valley(), "decode", snapshot(), SWEET),
        (Valley(0.04), "decode", snapshot(), 945),  # 40 ms at 1410: 60 ms at 940
        (Valley(0.07), "decode", snapshot(), 1410),  # nothing fits
        (Valley(), "decode", snapshot(queued=1), 1410),
        (Valley(0.2), "prefill", snapshot(), SWEET),
        (Valley(0.2), "prefill", snapshot(wait_s=0.3), 945),
        (Valley(0.2), "prefill", snapshot(wait_s=0.5), 1410),
        (Valley(0.2), "prefill", snapshot(wait_s=9.0), 1410),
        (Valley(), "decode", snapshot(batch=0), 210),
    ],
)
def test_the_rules(truth: Valley, phase: Phase, load: LoadSnapshot, expected: int) -> None:
    assert oracle(truth, phase).decide(load).clock_mhz == expected


def test_power_that_is_drawn_anyway_moves_the_sweet_spot_down() -> None:
    chosen = [oracle(Valley(), drawn_anyway_w=w).decide(snapshot()).clock_mhz for w in (0, 30, 60, 70)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] == SWEET and chosen[-1] == 480  # 60 ms at 470


def test_margin_and_levels() -> None:
    assert oracle(Valley(0.04), margin=0.25).decide(snapshot()).clock_mhz == 1260  # 45 ms at 1253
    assert oracle(Valley(0.04), levels_mhz=[210, 1005, 1410]).decide(snapshot()).clock_mhz == 1005
    assert oracle(Valley(), levels_mhz="1005..1410").decide(snapshot()).clock_mhz == 1005


def test_it_acts_at_once_goes_idle_and_promises_nothing() -> None:
    policy = oracle(Valley())
    assert policy.acts_at_once
    busy, idle = policy.decide(snapshot()), policy.decide(snapshot(batch=0))
    assert (busy.ask_when_idle_s, busy.holds_below_tokens) == (1e-3, 0.0)
    assert idle.ask_when_idle_s is None


valleys = st.builds(Valley, st.floats(1e-3, 0.2), st.floats(10, 200), st.floats(1, 600))


@given(truth=valleys, phase=st.sampled_from(["prefill", "decode"]), wait_s=st.floats(0, 0.7))
def test_no_clock_that_meets_the_budget_spends_less(truth: Valley, phase: Phase, wait_s: float) -> None:
    wait_s = wait_s if phase == "prefill" else 0.0
    budget_s = (SLO.ttft_s if phase == "prefill" else SLO.itl_s) - wait_s
    costs = {clock: truth.cost(clock) for clock in CLOCKS}
    feasible = {clock: joules for clock, (seconds, joules) in costs.items() if seconds <= budget_s}
    chosen = oracle(truth, phase).decide(snapshot(wait_s=wait_s)).clock_mhz
    assume(feasible)
    assert costs[chosen][0] <= budget_s
    assert costs[chosen][1] == min(feasible.values())


def test_the_search_ends_when_the_valley_is_behind() -> None:
    truth = Valley(0.001)
    oracle(truth).decide(snapshot())
    assert truth.asked < len(CLOCKS) - 10


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"levels_mhz": [1000]}, "levels_mhz: found 1000"),
        ({"margin": 1}, "margin: found 1"),
        ({"drawn_anyway_w": -1}, "drawn_anyway_w: found -1"),
        ({"idle_s": 0}, "idle_s: found 0"),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        oracle(Valley(), **parameters)

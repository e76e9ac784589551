"""Draining the queue in time; bands by throughput and steps by tail latency."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.greenllm import GreenLlmDecode, GreenLlmPrefill, percentile, sustained_tokens_per_s
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import Decision, LoadSnapshot, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
USED = CLOCKS[CLOCKS.index(810) :]
HAND = EcoPred(
    USED,
    [Line(0, 20e-6 * 1410 / clock) for clock in USED],  # 600 ms: 17234, 17553 ... 30000 tokens
    [[Plane(0.01, 0.1e-3 * 1410 / clock, 0)] * len(BIN_ENDS) for clock in USED],  # 60 ms: 287 ... 393 ... 500
)
LOAD = LoadSnapshot(10.0, 1200, 4, 100, 0, 0, 0.0, 0.0, 0, 0)
IDLE = LOAD._replace(batch_size=0, batch_tokens=0)


def prefill(**parameters: Any) -> GreenLlmPrefill:
    return GreenLlmPrefill(
        SLO,
        CLOCKS,
        HAND,
        **shipped("frequency/greenllm_prefill", **{"min_clock_mhz": 810, "margin": 0.0, **parameters}),
    )


def decode(**parameters: Any) -> GreenLlmDecode:
    return GreenLlmDecode(
        SLO, CLOCKS, HAND, **shipped("frequency/greenllm_decode", **{"bands_mhz": (810, 1110, 1410), **parameters})
    )


def prefill_clock(tokens: int, queued: int = 0, waited_s: float = 0.0, **parameters: Any) -> int:
    load = LOAD._replace(batch_tokens=tokens, queued_tokens=queued, longest_wait_s=waited_s)
    return prefill(**parameters).decide(load).clock_mhz


@pytest.mark.parametrize(
    ("tokens", "queued", "waited_s", "expected"),
    [
        (17_200, 0, 0.0, 810),
        (17_300, 0, 0.0, 825),
        (12_000, 5_300, 0.0, 825),  # the queue counts as if it were in the batch
        (8_600, 0, 0.3, 810),
        (29_990, 0, 0.0, 1410),
        (40_000, 0, 0.0, 1410),
        (1, 0, 0.7, 1410),
    ],
)
def test_prefill_drains_the_queue_in_time(tokens: int, queued: int, waited_s: float, expected: int) -> None:
    assert prefill_clock(tokens, queued, waited_s) == expected


def test_a_margin_takes_from_the_objective() -> None:
    assert prefill_clock(8_700, margin=0.5) == 825


def test_of_the_clocks_in_time_the_one_of_least_energy_is_not_always_the_lowest() -> None:
    assert prefill_clock(100, static_share=0.8, idle_share=0.0) == 1410  # sooner done, sooner idle
    assert prefill_clock(100, static_share=0.0, idle_share=0.0) == 810
    assert 810 < prefill_clock(100, static_share=0.45, idle_share=0.0) < 1410


@pytest.mark.parametrize("controller", [prefill(), decode()])
def test_an_idle_instance_keeps_its_clock_then_takes_the_lowest(controller: Any) -> None:
    assert controller.decide(IDLE._replace(time_s=0.0, idle_s=math.inf)) == Decision(810)
    busy = controller.decide(LOAD._replace(time_s=1.0, batch_tokens=20_000))
    assert busy.ask_when_idle_s == 5.0
    idle = IDLE._replace(clock_mhz=busy.clock_mhz)
    assert controller.decide(idle._replace(idle_s=2.0)) == Decision(busy.clock_mhz, 5.0)
    assert controller.decide(idle._replace(idle_s=5.0)).clock_mhz == 810


class Bench:
    """Feeds a decode controller with iterations of a batch and a latency."""

    def __init__(self, **parameters: Any) -> None:
        self.controller = decode(**parameters)
        self.now_s = 0.0
        self.iterations = 0

    def iterate(self, times: int, batch: int, latency_s: float) -> list[int]:
        clocks = []
        for _ in range(times):
            load = LOAD._replace(
                time_s=self.now_s, batch_size=batch, iterations=self.iterations, busy_s=self.now_s, idle_s=0.0
            )
            clocks.append(self.controller.decide(load).clock_mhz)
            self.now_s += latency_s
            self.iterations += 1
        return clocks


def test_the_inner_loop_climbs_and_falls_by_one_step_within_the_band() -> None:
    bench = Bench(window_s=100.0)  # the outer loop rests
    up = bench.iterate(5, 1, 0.058)
    assert up == [810, 825, 840, 855, 870]
    assert bench.iterate(40, 1, 0.058)[-1] == 1110  # the band reaches up to the next level
    down = Bench(window_s=0.1)
    down.iterate(10, 1, 0.058)
    falling = down.iterate(100, 1, 0.02)
    assert falling[-1] == 810
    assert all(abs(a - b) <= 15 for a, b in pairwise(falling))


def test_the_inner_loop_rests_between_its_thresholds() -> None:
    assert set(Bench().iterate(3, 1, 0.045)) == {810}


def test_the_inner_loop_does_not_turn_before_its_time() -> None:
    bench = Bench(window_s=100.0, low=0.01, high=0.02)
    assert bench.iterate(9, 1, 0.005) == [810] * 4 + [825] * 4 + [840]


def test_a_band_is_taken_after_three_windows_that_ask_for_it() -> None:
    """400 requests in 40 ms make 10000 tokens/s: more than 810 MHz sustains (287 in 60 ms), and 1110 too (393)."""
    bench = Bench(low=0.0, high=2.0)  # the inner loop rests
    clocks = bench.iterate(20, 400, 0.04)
    assert clocks[:15] == [810] * 15
    assert clocks[15] == 1110  # the lowest of the highest band
    assert set(clocks[15:]) == {1110}


def test_a_window_that_asks_for_the_present_band_begins_the_count_anew() -> None:
    bench = Bench(low=0.0, high=2.0)
    clocks = []
    for _ in range(4):
        clocks += bench.iterate(10, 400, 0.04)  # two windows
        clocks += bench.iterate(10, 1, 0.04)
    assert set(clocks) == {810}


def test_throughput_that_falls_lowers_the_band() -> None:
    bench = Bench(low=0.0, high=2.0)
    assert bench.iterate(30, 400, 0.04)[-1] == 1110
    bench.iterate(30, 1, 0.04)
    assert bench.controller.decide(IDLE._replace(time_s=bench.now_s, idle_s=1.0)).clock_mhz == 1110  # still in reach
    low = Bench(low=0.0, high=2.0, bands_mhz=(810, 915, 1110, 1410))
    assert low.iterate(30, 450, 0.04)[-1] == 1110
    assert low.iterate(30, 1, 0.04)[-1] == 915


@given(st.integers(0, 80), st.floats(1, 2000))
def test_a_higher_clock_sustains_no_less(place: int, tokens: float) -> None:
    lower, higher = CLOCKS[max(0, place - 1)], CLOCKS[place]
    sustained = [sustained_tokens_per_s(HAND, clock, tokens, 0.06) for clock in (lower, higher)]
    assert sustained[0] <= sustained[1] * (1 + 1e-9)


def test_what_a_clock_sustains_is_the_largest_batch_within_the_objective() -> None:
    assert sustained_tokens_per_s(HAND, 810, 500, 0.06) == pytest.approx(287 / 0.06, rel=0.01)
    assert sustained_tokens_per_s(HAND, 810, 500, 0.005) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_percentile_is_not_exceeded_by_its_share_of_values(values: list[float]) -> None:
    tail = percentile(values, 0.95)
    assert sum(value <= tail for value in values) >= 0.95 * len(values) - 1e-9
    assert sum(value < tail for value in values) < 0.95 * len(values) + 1e-9


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (prefill, {"margin": 1.0}),
        (prefill, {"min_clock_mhz": 1}),
        (prefill, {"idle_share": 2}),
        (decode, {"window_s": 0}),
        (decode, {"hysteresis": 0}),
        (decode, {"low": 0.95}),
        (decode, {"high": 0}),
    ],
)
def test_bad_parameters_are_refused(make: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(bad))}: found"):
        make(**bad)

"""Planning ahead in prefill, headroom and KV room in decode."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.dualscale import DualScaleDecode, DualScalePrefill
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import Decision, LoadSnapshot, RequestView, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
LEVELS_MHZ = (810, 915, 1005, 1110, 1200, 1305, 1410)
HAND = EcoPred(
    LEVELS_MHZ,
    [Line(0, 20e-6 * 1410 / clock) for clock in LEVELS_MHZ],  # 600 ms: 17234, 19468 ... 30000 tokens
    [[Plane(0, 0.1e-3 * 1410 / clock, 0.5e-7)] * len(BIN_ENDS) for clock in LEVELS_MHZ],  # 57 ms: 327, 369 ... 570
)
LOAD = LoadSnapshot(10.0, 1200, 4, 100, 0, 0, 0.0, 0.0, 0, 0)
IDLE = LOAD._replace(batch_size=0, batch_tokens=0)


def prefill(**parameters: Any) -> DualScalePrefill:
    return DualScalePrefill(
        SLO,
        CLOCKS,
        HAND,
        **shipped("frequency/dualscale_prefill", **{"levels_mhz": LEVELS_MHZ, "margin": 0.0, **parameters}),
    )


def decode(**parameters: Any) -> DualScaleDecode:
    return DualScaleDecode(
        SLO, CLOCKS, HAND, 100_000, **shipped("frequency/dualscale_decode", **{"headroom": 0.05, **parameters})
    )


def prefill_clock(load: LoadSnapshot, **parameters: Any) -> int:
    return prefill(**parameters).decide(load).clock_mhz


def waiting(*requests: tuple[float, int]) -> tuple[RequestView, ...]:
    """Requests of (age, prompt tokens)."""
    return tuple(RequestView(age, tokens, 0, 0.0) for age, tokens in requests)


@pytest.mark.parametrize(
    ("tokens", "waited_s", "expected"),
    [(17_200, 0.0, 810), (17_300, 0.0, 915), (8_600, 0.3, 810), (29_900, 0.0, 1410), (99_000, 0.0, 1410)],
)
def test_a_batch_alone_takes_the_lowest_level_in_time(tokens: int, waited_s: float, expected: int) -> None:
    assert prefill_clock(LOAD._replace(batch_tokens=tokens, longest_wait_s=waited_s)) == expected


def test_a_margin_takes_from_the_objective() -> None:
    load = LOAD._replace(batch_tokens=10_000)
    assert [prefill_clock(load, margin=margin) for margin in (0.0, 0.5)] == [810, 1005]


def test_requests_that_wait_behind_the_batch_speed_it_up() -> None:
    behind = LOAD._replace(batch_tokens=10_000, waiting=waiting((0.0, 10_000)), queued=1)
    assert prefill_clock(LOAD._replace(batch_tokens=10_000)) == 810
    assert prefill_clock(behind) > 810
    assert prefill_clock(behind, horizon=1) == 810  # who does not look ahead does not see them


def test_the_plan_spreads_the_haste_over_the_batches() -> None:
    """20,000 tokens in 600 ms take 940 MHz; nothing is gained by the highest clock for one batch."""
    behind = LOAD._replace(batch_tokens=10_000, waiting=waiting((0.0, 10_000)), queued=1)
    assert prefill_clock(behind) in (915, 1005)


def test_only_as_many_tokens_as_a_batch_holds_run_together() -> None:
    """The last batch of three is late unless all run at the highest clock; with a horizon of two nobody sees it."""
    load = LOAD._replace(batch_tokens=9_000, waiting=waiting((0.1, 8_000), (0.0, 12_500)), queued=2)
    assert prefill_clock(load, max_batch_tokens=16_384) == 1410
    assert prefill_clock(load, max_batch_tokens=16_384, horizon=2) < 1410


def test_a_hopeless_batch_runs_at_the_highest_clock() -> None:
    assert prefill_clock(LOAD._replace(batch_tokens=100, longest_wait_s=0.7)) == 1410


def test_expected_arrivals_speed_a_batch_up() -> None:
    def clock(arrived: int) -> int:
        controller = prefill(margin=0.5)
        controller.decide(IDLE._replace(time_s=0.0, idle_s=math.inf))
        return controller.decide(LOAD._replace(time_s=5.0, batch_tokens=4_000, arrived_tokens=arrived)).clock_mhz

    assert clock(0) == 810 < clock(5 * 45_000)


@given(
    st.integers(1, 16_000),
    st.floats(0, 0.7),
    st.lists(st.tuples(st.floats(0, 0.7), st.integers(1, 16_000)), max_size=20),
    st.integers(0, 200_000),
)
def test_more_haste_never_lowers_the_clock(
    tokens: int, waited_s: float, behind: list[tuple[float, int]], arrived: int
) -> None:
    load = LOAD._replace(batch_tokens=tokens, longest_wait_s=waited_s, arrived_tokens=arrived)
    queue = load._replace(waiting=waiting(*behind), queued=len(behind))
    assert prefill_clock(load, horizon=1) <= prefill_clock(queue, horizon=8)
    assert prefill_clock(queue) in LEVELS_MHZ


@pytest.mark.parametrize("controller", [prefill(), decode()])
def test_an_idle_instance_keeps_its_clock_then_takes_the_lowest(controller: Any) -> None:
    assert controller.decide(IDLE._replace(time_s=0.0, idle_s=math.inf)) == Decision(810)
    assert controller.decide(IDLE._replace(idle_s=2.0)) == Decision(1200, 5.0)
    assert controller.decide(IDLE._replace(idle_s=5.0)) == Decision(810)


@pytest.mark.parametrize(("batch", "expected"), [(327, 810), (328, 915), (560, 1410), (2000, 1410)])
def test_decode_keeps_five_per_cent_headroom(batch: int, expected: int) -> None:
    assert decode().decide(LOAD._replace(batch_size=batch, batch_tokens=0)).clock_mhz == expected


def test_a_queue_alone_does_not_hurry_decode() -> None:
    assert decode().decide(LOAD._replace(queued=5, queued_tokens=1000)).clock_mhz == 810


@pytest.mark.parametrize(("held", "queued", "expected"), [(89_000, 0, 810), (91_000, 0, 1410), (50_000, 41_000, 1410)])
def test_a_cache_nearly_full_takes_the_highest_clock(held: int, queued: int, expected: int) -> None:
    assert decode().decide(LOAD._replace(batch_tokens=held, queued_tokens=queued)).clock_mhz == expected


@given(st.integers(1, 600), st.integers(0, 95_000), st.integers(0, 40_000), st.floats(0, 1))
def test_a_promise_holds(batch: int, tokens: int, queued: int, share: float) -> None:
    load = LOAD._replace(batch_size=batch, batch_tokens=tokens, queued_tokens=queued)
    answer = decode().decide(load)
    until = min(answer.holds_below_tokens, 10_000_000)
    later = tokens + int(share * max(0.0, until - tokens))
    if later < answer.holds_below_tokens:
        assert decode().decide(load._replace(batch_tokens=later)).clock_mhz == answer.clock_mhz


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (prefill, {"horizon": 0}),
        (prefill, {"margin": 1.0}),
        (prefill, {"max_batch_tokens": 0}),
        (decode, {"kv_high": 0}),
        (decode, {"headroom": -0.1}),
        (decode, {"levels_mhz": []}),
    ],
)
def test_bad_parameters_are_refused(make: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(bad))}: found"):
        make(**bad)

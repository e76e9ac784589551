"""Each rule of each controller, on snapshots made by hand, then the laws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.ecofreq import EcoFreq
from voltana.policies.static import StaticClock
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import Decision, LoadSnapshot, Phase, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
HAND = EcoPred(
    (1005, 1410),
    [Line(0, 40e-6), Line(0, 30e-6)],  # 0.6 s: 15000 tokens at 1005 MHz, 20000 at 1410 MHz
    [
        [Plane(0, 0.2e-3, 1e-7)] * len(BIN_ENDS),
        [Plane(0, 0.1e-3, 0.5e-7)] * len(BIN_ENDS),
    ],  # 60 ms: 300 and 600 requests
)
LIGHT = LoadSnapshot(10.0, 1200, 4, 100, 0, 0, 0.0, 0.0, 0, 0)
IDLE = LIGHT._replace(batch_size=0, batch_tokens=0)


def ecofreq(phase: Phase = "decode", predictor: EcoPred = HAND, **parameters: Any) -> EcoFreq:
    return EcoFreq(phase, SLO, CLOCKS, predictor, **shipped("frequency/ecofreq", **{"margin": 0.0, **parameters}))


def clock(controller: EcoFreq, load: LoadSnapshot = LIGHT, **changes: Any) -> int:
    return controller.decide(load._replace(**changes)).clock_mhz


@pytest.mark.parametrize(("parameter", "expected"), [("max", 1410), (1005, 1005), (210, 210)])
def test_static_clock_never_moves(parameter: Any, expected: int) -> None:
    controller = StaticClock(CLOCKS, clock_mhz=parameter)
    loads = [LIGHT, IDLE, LIGHT._replace(queued=9), LIGHT._replace(batch_size=1000)]
    assert {controller.decide(load) for load in loads} == {Decision(expected, holds_below_tokens=math.inf)}


# Rule 4: the lowest level that fits.


@pytest.mark.parametrize(
    ("batch", "kv_tokens", "expected"),
    [(299, 0, 1005), (301, 0, 1410), (100, 399_000, 1005), (100, 401_000, 1410), (599, 0, 1410), (5000, 0, 1410)],
)
def test_decode_takes_the_lowest_clock_within_the_itl_objective(batch: int, kv_tokens: int, expected: int) -> None:
    assert clock(ecofreq(), batch_size=batch, batch_tokens=kv_tokens) == expected


@pytest.mark.parametrize(
    ("tokens", "waited_s", "expected"),
    [
        (14_900, 0.0, 1005),
        (15_100, 0.0, 1410),
        (7_400, 0.3, 1005),
        (7_600, 0.3, 1410),
        (50_000, 0.0, 1410),  # none fits
        (1, 0.7, 1410),  # already late
    ],
)
def test_prefill_budget_shrinks_with_the_longest_wait(tokens: int, waited_s: float, expected: int) -> None:
    assert clock(ecofreq("prefill"), batch_tokens=tokens, longest_wait_s=waited_s) == expected


def test_a_late_batch_is_never_slowed_by_a_prediction_below_zero() -> None:
    negative = EcoPred((1005, 1410), [Line(-0.1, 1e-6)] * 2, [[Plane(-0.1, 0, 0)] * len(BIN_ENDS)] * 2)
    assert clock(ecofreq("prefill", negative), batch_tokens=50, longest_wait_s=0.601) == 1410


@pytest.mark.parametrize(("margin", "fits", "does_not"), [(0.0, 299, 301), (-0.35, 404, 406), (0.5, 149, 151)])
def test_margin_scales_the_objective(margin: float, fits: int, does_not: int) -> None:
    assert clock(ecofreq(margin=margin), batch_size=fits) == 1005
    assert clock(ecofreq(margin=margin), batch_size=does_not) == 1410


def test_margin_scales_the_ttft_objective_before_the_wait_is_taken_off() -> None:
    released = ecofreq("prefill", margin=-0.35)  # 810 ms
    assert clock(released, batch_tokens=12_700, longest_wait_s=0.3) == 1005  # 508 ms
    assert clock(released, batch_tokens=12_800, longest_wait_s=0.3) == 1410  # 512 ms


def test_levels_between_profiled_clocks_are_interpolated() -> None:
    controller = ecofreq(levels_mhz=[1410, 1200, 1005])
    assert [clock(controller, batch_size=batch) for batch in (299, 301, 394, 396)] == [1005, 1200, 1200, 1410]


# Rule 3: a queue.


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_queue_takes_the_highest_clock(phase: Phase) -> None:
    controller = ecofreq(phase)
    assert clock(controller, queued=1) == 1410
    assert clock(controller, queued=0) == 1005


# Rule 2: no iterations.


@pytest.mark.parametrize("clock_mhz", [0, 1410])
def test_starts_at_the_lowest_level(clock_mhz: int) -> None:
    assert clock(ecofreq(), IDLE, time_s=0.0, idle_s=math.inf, clock_mhz=clock_mhz) == 1005


def test_an_idle_instance_keeps_its_clock_then_goes_to_the_lowest_level() -> None:
    controller = ecofreq(idle_s=5.0)
    assert controller.decide(LIGHT._replace(queued=1)).clock_mhz == 1410
    assert controller.decide(IDLE._replace(idle_s=2.0, clock_mhz=1410)) == Decision(1410, 5.0)
    assert controller.decide(IDLE._replace(idle_s=5.0, clock_mhz=1410)) == Decision(1005)


@given(st.floats(0.01, 100))
def test_asked_when_it_wished_an_idle_controller_goes_to_the_lowest_level(idle_s: float) -> None:
    controller = ecofreq(idle_s=idle_s)
    ask_s = controller.decide(LIGHT).ask_when_idle_s
    assert ask_s is not None
    assert clock(controller, IDLE, idle_s=ask_s, clock_mhz=1410) == 1005


# Rule 1: surges.


def arrivals(controller: EcoFreq, *steps: tuple[float, int, int]) -> list[int]:
    """Clocks at (time, requests so far, tokens so far) under a load that alone asks for the lowest."""
    return [clock(controller, time_s=t, arrived_requests=n, arrived_tokens=tokens) for t, n, tokens in steps]


def test_request_rate_above_the_threshold_takes_the_highest_clock() -> None:
    controller = ecofreq(max_requests_per_s=10, rate_window_s=2.0)
    steps = (1.0, 20, 0), (2.0, 21, 0), (3.0, 21, 0), (4.0, 41, 0), (4.9, 42, 0), (5.5, 42, 0)
    assert arrivals(controller, *steps) == [1005, 1410, 1005, 1005, 1410, 1410]


def test_a_surge_is_over_when_the_window_has_passed_it() -> None:
    controller = ecofreq(max_requests_per_s=10, rate_window_s=1.0)
    steps = (5.0, 0, 0), (5.5, 11, 0), (6.4, 11, 0), (6.6, 11, 0)
    assert arrivals(controller, *steps) == [1005, 1410, 1410, 1005]


def test_token_rate_above_the_threshold_takes_the_highest_clock() -> None:
    controller = ecofreq("prefill", max_tokens_per_s=1000)
    assert arrivals(controller, (0.5, 1, 1000), (0.6, 2, 1001)) == [1005, 1410]


def test_without_thresholds_there_is_no_surge() -> None:
    assert arrivals(ecofreq(), (0.1, 10**6, 10**9)) == [1005]


def test_a_surge_wakes_an_idle_instance() -> None:
    controller = ecofreq(max_requests_per_s=10)
    assert clock(controller, IDLE, time_s=0.5, arrived_requests=11) == 1410


# Windows.


def test_with_an_interval_the_clock_stays_until_it_is_over() -> None:
    controller = ecofreq(interval_s=1.0)
    assert clock(controller, time_s=0.0, batch_size=400) == 1410
    assert clock(controller, time_s=0.5, batch_size=1, clock_mhz=1410) == 1410
    assert clock(controller, time_s=0.9, queued=1, clock_mhz=1200) == 1200
    assert clock(controller, time_s=1.0, batch_size=1, clock_mhz=1410) == 1005


def test_an_interval_decides_from_medians_since_the_last_decision() -> None:
    controller = ecofreq(interval_s=1.0)
    clock(controller, time_s=0.0, batch_size=1000)
    for time_s, batch in ((0.2, 100), (0.4, 100), (0.6, 900)):
        clock(controller, time_s=time_s, batch_size=batch)
    assert clock(controller, time_s=1.0, batch_size=100) == 1005
    for time_s, batch in ((1.2, 400), (1.4, 1)):
        clock(controller, time_s=time_s, batch_size=batch)
    assert clock(controller, time_s=2.0, batch_size=350) == 1410


def test_an_interval_takes_the_median_of_tokens_on_its_own() -> None:
    controller = ecofreq("prefill", interval_s=1.0)
    clock(controller, time_s=0.0)
    for time_s, batch, tokens in ((0.2, 1, 20_000), (0.4, 9, 1000)):
        clock(controller, time_s=time_s, batch_size=batch, batch_tokens=tokens)
    assert clock(controller, time_s=1.0, batch_size=5, batch_tokens=2000) == 1005


def test_a_median_between_two_batches_is_predicted_as_ecopred_would() -> None:
    planes = [Plane(0, 1e-3, 0), Plane(1.0, 0, 0), *[Plane(0, 0, 0)] * (len(BIN_ENDS) - 2)]  # 5-8 never fits
    controller = ecofreq("decode", EcoPred((1005, 1410), [Line(0, 0)] * 2, [planes] * 2), interval_s=1.0)
    clock(controller, time_s=0.0)
    clock(controller, time_s=0.5, batch_size=4)
    assert clock(controller, time_s=1.0, batch_size=5) == 1410


def test_what_was_seen_before_an_idle_time_is_forgotten() -> None:
    controller = ecofreq(interval_s=1.0, idle_s=5.0)
    for time_s in (0.0, 0.2, 0.4):
        clock(controller, time_s=time_s, batch_size=1000)
    assert clock(controller, IDLE, time_s=5.4, idle_s=5.0) == 1005
    assert clock(controller, time_s=9.0, batch_size=1) == 1005


# Laws.

planes = st.builds(Plane, st.floats(0, 0.1), st.floats(0, 1e-3), st.floats(0, 1e-6))
predictors = st.lists(planes, min_size=3, max_size=3).map(
    lambda three: EcoPred(
        (1005, 1200, 1410), [Line(p.intercept_s, p.per_token_s) for p in three], [[p] * len(BIN_ENDS) for p in three]
    )
)
phases = st.sampled_from(["prefill", "decode"])
batches = st.integers(1, 2000)
tokens = st.integers(1, 500_000)
waits = st.floats(0, 1)
margins = st.floats(-1, 0.99)
levels = st.lists(st.sampled_from(CLOCKS), min_size=1, max_size=6)


@given(phases, predictors, levels, margins, batches, tokens, waits)
def test_chooses_the_lowest_level_predicted_to_fit(
    phase: Phase, predictor: EcoPred, levels_mhz: list[int], margin: float, batch: int, kv: int, waited_s: float
) -> None:
    chosen = clock(
        ecofreq(phase, predictor, levels_mhz=levels_mhz, margin=margin),
        batch_size=batch,
        batch_tokens=kv,
        longest_wait_s=waited_s,
    )
    objective_s = SLO.ttft_s if phase == "prefill" else SLO.itl_s

    def fits(mhz: int) -> bool:
        predicted_s = predictor.prefill_s(kv, mhz) if phase == "prefill" else predictor.decode_s(batch, kv, mhz)
        return predicted_s <= (1 - margin) * objective_s - waited_s

    assert chosen == next((mhz for mhz in sorted(levels_mhz) if fits(mhz)), max(levels_mhz))


@given(phases, predictors, margins, batches, tokens, waits, st.integers(0, 2), st.floats(0, 1))
def test_an_answer_holds_as_long_as_it_promised(
    phase: Phase,
    predictor: EcoPred,
    margin: float,
    batch: int,
    kv: int,
    waited_s: float,
    queued: int,
    share: float,
) -> None:
    controller = ecofreq(phase, predictor, levels_mhz=(1005, 1095, 1200, 1305, 1410), margin=margin)
    load = LIGHT._replace(batch_size=batch, batch_tokens=kv, longest_wait_s=waited_s, queued=queued)
    decision = controller.decide(load)
    until = min(decision.holds_below_tokens, 10**9)
    later = int(kv + share * (until - kv))
    if kv <= later < until:
        assert clock(controller, load, batch_tokens=later) == decision.clock_mhz


@pytest.mark.parametrize("parameters", [{"interval_s": 1.0}, {"max_requests_per_s": 5}, {"max_tokens_per_s": 5}])
@pytest.mark.parametrize("load", [LIGHT, LIGHT._replace(queued=1), LIGHT._replace(batch_size=9999), IDLE])
def test_a_controller_that_watches_time_promises_nothing(parameters: dict[str, Any], load: LoadSnapshot) -> None:
    assert ecofreq(**parameters).decide(load).holds_below_tokens == 0


@given(phases, predictors, batches, tokens, waits, st.integers(0, 500), st.integers(0, 10**6), st.floats(0, 1))
def test_more_load_never_lowers_the_clock(
    phase: Phase, predictor: EcoPred, batch: int, kv: int, waited_s: float, more: int, more_kv: int, longer_s: float
) -> None:
    controller = ecofreq(phase, predictor, levels_mhz=(1005, 1095, 1200, 1305, 1410))
    less = clock(controller, batch_size=batch, batch_tokens=kv, longest_wait_s=waited_s)
    assert less <= clock(
        controller, batch_size=batch + more, batch_tokens=kv + more_kv, longest_wait_s=waited_s + longer_s
    )


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 900), st.integers(0, 3)), max_size=30), levels)
def test_always_answers_with_a_level_or_the_clock_it_has(
    steps: list[tuple[float, int, int]], levels_mhz: list[int]
) -> None:
    controller = ecofreq(levels_mhz=levels_mhz, interval_s=0.5, max_requests_per_s=5, idle_s=1.0)
    now_s, current, arrived = 0.0, 210, 0
    for gap_s, batch, new in steps:
        now_s, arrived = now_s + gap_s, arrived + new
        idle_s = 0.0 if batch else gap_s
        load = LoadSnapshot(now_s, current, batch, batch * 9, 0, 0, 0.0, idle_s, arrived, arrived)
        decision = controller.decide(load)
        assert decision.clock_mhz in {*levels_mhz, current}
        assert decision.ask_when_idle_s is None or decision.ask_when_idle_s > 0
        current = decision.clock_mhz


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StaticClock(CLOCKS, clock_mhz=1006), "clock_mhz: found 1006, allowed: 210 to 1410 MHz in steps of 15"),
        (lambda: StaticClock(CLOCKS, clock_mhz="fast"), "clock_mhz: found 'fast', allowed: "),
        (lambda: StaticClock(CLOCKS, clock_mhz=True), "clock_mhz: found True, allowed: "),
        (lambda: ecofreq(levels_mhz=[1005, 1411]), "levels_mhz: found 1411, allowed: 210 to 1410 MHz in steps of 15"),
        (lambda: ecofreq(levels_mhz=[]), "levels_mhz: found [], allowed: clocks, a list or LOW..HIGH, "),
        (lambda: ecofreq(levels_mhz=1005), "levels_mhz: found 1005, allowed: clocks, a list or LOW..HIGH, "),
        (lambda: ecofreq(levels_mhz="1005"), "levels_mhz: found '1005', allowed: clocks, a list or LOW..HIGH, "),
        (lambda: ecofreq(margin=1.0), "margin: found 1.0, allowed: a number > -10 and <= 0.99"),
        (lambda: ecofreq(margin=float("nan")), "margin: found nan, allowed: "),
        (lambda: ecofreq(margin="0.1"), "margin: found '0.1', allowed: "),
        (lambda: ecofreq(interval_s=-1), "interval_s: found -1, allowed: a number >= 0"),
        (lambda: ecofreq(rate_window_s=0), "rate_window_s: found 0, allowed: a number > 0"),
        (lambda: ecofreq(max_requests_per_s=0), "max_requests_per_s: found 0, allowed: a number > 0"),
        (lambda: ecofreq(max_tokens_per_s=-5), "max_tokens_per_s: found -5, allowed: a number > 0"),
        (lambda: ecofreq(idle_s=0), "idle_s: found 0, allowed: a number > 0"),
        (lambda: ecofreq(idle_s=None), "idle_s: found None, allowed: a number > 0"),
    ],
)
def test_a_bad_parameter_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(message)

"""The power cap of decode and the clock window of prefill, on latencies made by hand."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.power_cap import ClockWindow, PowerCap
from voltana.state import Decision, LoadSnapshot, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
LOAD = LoadSnapshot(0.0, 1410, 40, 9000, 0, 0, 0.0, 0.0, 0, 0)


def cap(**parameters: Any) -> PowerCap:
    return PowerCap(
        SLO, CLOCKS, (100.0, 400.0), **shipped("frequency/power_cap", **{"cap_w": 250, "margin": 0.0, **parameters})
    )


def window(**parameters: Any) -> ClockWindow:
    return ClockWindow(
        SLO, CLOCKS, **shipped("frequency/power_cap_prefill", **{"high_mhz": 1305, "margin": 0.0, **parameters})
    )


def answers(
    controller: PowerCap | ClockWindow, latencies_s: list[float], wait_s: float = 0.0
) -> tuple[list[Decision], LoadSnapshot]:
    """Decisions after iterations of these latencies, one question before each and one at the end."""
    load, decisions = LOAD._replace(longest_wait_s=wait_s), []
    for latency_s in [*latencies_s, None]:
        decisions.append(controller.decide(load))
        if latency_s is not None:
            load = load._replace(
                time_s=load.time_s + latency_s, iterations=load.iterations + 1, busy_s=load.busy_s + latency_s
            )
    return decisions, load


def caps(controller: PowerCap, *latencies_s: float) -> list[float | None]:
    return [decision.power_cap_w for decision in answers(controller, list(latencies_s))[0]]


def test_decode_runs_at_the_highest_clock_under_the_cap() -> None:
    assert cap().decide(LOAD) == Decision(1410, power_cap_w=250)


def test_a_late_tail_releases_the_cap() -> None:
    assert caps(cap(), 0.05, 0.059, 0.061) == [250, 250, 250, None]


def test_the_tail_is_a_quantile() -> None:
    assert caps(cap(quantile=0.5), 0.05, 0.05, 0.061, 0.05)[-1] == 250
    assert caps(cap(quantile=0.5), 0.05, 0.061, 0.061)[-1] is None


def test_the_cap_returns_when_the_window_is_well_in_time() -> None:
    late_then = [0.061, *[0.055] * 30]
    assert caps(cap(window_s=1.0, reapply_share=0.9), *late_then)[-1] is None  # 55 > 0.9 x 60 ms
    assert caps(cap(window_s=1.0, reapply_share=0.95), *late_then)[-1] == 250
    assert caps(cap(window_s=1.0, reapply_share=0.95), *late_then[:10])[-1] is None  # 61 ms is still in the window


def test_a_margin_tightens_the_objective() -> None:
    assert caps(cap(margin=0.2), 0.05)[-1] is None


def test_iterations_that_were_not_asked_about_count_with_their_mean() -> None:
    controller = cap()
    controller.decide(LOAD)
    later = LOAD._replace(time_s=0.2, iterations=4, busy_s=0.2)
    assert controller.decide(later).power_cap_w == 250
    assert controller.decide(later._replace(time_s=0.5, iterations=8, busy_s=0.5)).power_cap_w is None


def test_a_cap_that_is_never_released_holds_for_ever() -> None:
    decisions, _ = answers(cap(releases=False), [0.5, 0.5])
    assert set(decisions) == {Decision(1410, holds_below_tokens=math.inf, power_cap_w=250)}


@pytest.mark.slow
@given(st.lists(st.floats(0.001, 0.2), max_size=40))
def test_a_cap_that_may_be_released_promises_nothing(latencies_s: list[float]) -> None:
    decisions, _ = answers(cap(), latencies_s)
    assert all(d.holds_below_tokens == 0 and d.clock_mhz == 1410 and d.power_cap_w in (250, None) for d in decisions)


@given(st.lists(st.floats(0.001, 0.0539), max_size=40))
def test_a_workload_in_time_is_always_capped(latencies_s: list[float]) -> None:
    assert set(caps(cap(), *latencies_s)) == {250}


def test_prefill_runs_at_the_upper_end_and_idles_at_the_lower() -> None:
    controller = window()
    assert controller.decide(LOAD._replace(batch_size=0, idle_s=math.inf)).clock_mhz == 1005
    assert controller.decide(LOAD) == Decision(1305, 0.1)
    assert controller.decide(LOAD._replace(batch_size=0, idle_s=0.1)).clock_mhz == 1005


def test_prefill_leaves_the_window_upwards_when_first_tokens_are_late() -> None:
    clocks = [d.clock_mhz for d in answers(window(), [0.2, 0.2], wait_s=0.3)[0]]
    assert clocks == [1305, 1305, 1305]
    assert [d.clock_mhz for d in answers(window(), [0.2], wait_s=0.45)[0]] == [1305, 1410]
    assert [d.clock_mhz for d in answers(window(releases=False), [0.2], wait_s=0.45)[0]] == [1305, 1305]


@pytest.mark.parametrize("cap_w", [99, 401, True, "300"])
def test_a_cap_that_the_gpu_does_not_take_is_refused(cap_w: Any) -> None:
    with pytest.raises(UserError, match="cap_w"):
        cap(cap_w=cap_w)


@pytest.mark.parametrize(
    "parameters", [{"low_mhz": 1320}, {"high_mhz": 1300}, {"quantile": 0}, {"window_s": 0}, {"reapply_share": 1.1}]
)
def test_bad_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(parameters))):
        window(**parameters)

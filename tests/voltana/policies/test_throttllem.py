"""throttLL'eM's rule on batches made by hand, and what its projection promises."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.throttllem import Projection, ThrottLLeM
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import LoadSnapshot, Phase, RequestView, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
HAND = EcoPred(
    (1005, 1410),
    [Line(0, 40e-6), Line(0, 30e-6)],  # 0.6 s: 15000 tokens at 1005 MHz, 20000 at 1410 MHz
    [[Plane(0, 0.2e-3, 1e-7)] * len(BIN_ENDS), [Plane(0, 0.1e-3, 0.5e-7)] * len(BIN_ENDS)],
)
LOAD = LoadSnapshot(10.0, 1200, 1, 100, 0, 0, 0.0, 0.0, 0, 0)


def view(age_s: float = 0.1, prompt: int = 100, produced: int = 1, expected: float = 50.0) -> RequestView:
    return RequestView(age_s, prompt, produced, expected)


def rule(phase: Phase = "decode", capacity: int = 10**6, **parameters: Any) -> ThrottLLeM:
    parameters = {"margin": 0.0, "length_margin": 0.0, **parameters}
    return ThrottLLeM(phase, SLO, CLOCKS, HAND, capacity, **shipped("frequency/throttllem", **parameters))


def decode(controller: ThrottLLeM, running: list[RequestView], **changes: Any) -> int:
    tokens = sum(v.prompt_tokens + v.produced_tokens for v in running)
    load = LOAD._replace(batch_size=len(running), batch_tokens=tokens, running=tuple(running), **changes)
    return controller.decide(load).clock_mhz


def test_a_light_batch_takes_the_lowest_clock() -> None:
    assert decode(rule(), [view()] * 4) == 1005


def test_the_longest_projected_iteration_meets_the_itl_objective() -> None:
    chosen = decode(rule(), [view(prompt=1, expected=5)] * 400)
    assert 1005 < chosen < 1410
    assert HAND.decode_s(400, 400 * 6, chosen) <= SLO.itl_s < HAND.decode_s(400, 400 * 6, chosen - 30)


def test_growth_of_the_kv_cache_is_foreseen() -> None:
    # 290 requests fit at 1005 MHz now (58 ms), but 290 x 200 tokens later they do not
    assert decode(rule(), [view(prompt=1, expected=5)] * 290) == 1005
    assert decode(rule(), [view(prompt=1, expected=200)] * 290) > 1005


def test_a_margin_tightens_the_objective() -> None:
    batch = [view(prompt=1, expected=5)] * 250
    assert decode(rule(), batch) == 1005 < decode(rule(margin=0.25), batch)


def test_a_request_behind_its_end_to_end_schedule_raises_the_clock() -> None:
    # 100 tokens at 20 ms (1005 MHz) or 10 ms (1410 MHz) have until 0.6 + 100 x 0.06 = 6.6 s after arrival
    batch = [view(0.0, 1, 1, 100)] * 99
    assert decode(rule(), [*batch, view(4.0, 1, 1, 100)]) == 1005
    assert 1005 < decode(rule(), [*batch, view(5.0, 1, 1, 100)]) < 1410


def test_a_late_request_takes_the_highest_clock() -> None:
    assert decode(rule(), [view(), view(age_s=60.0)]) == 1410


def test_projected_kv_above_the_capacity_takes_the_highest_clock() -> None:
    assert decode(rule(capacity=300), [view(expected=50)] * 2) == 1005  # both end with 149 tokens
    assert decode(rule(capacity=297), [view(expected=50)] * 2) == 1410


def test_requests_that_wait_for_memory_take_the_highest_clock() -> None:
    assert decode(rule(), [view()], queued=1) == 1410


def test_a_request_that_outgrew_its_expected_length_is_expected_to_reach_the_limit() -> None:
    ahead = Projection([view(produced=60, expected=50)], 0.0, max_tokens=2048)
    assert ahead.ends.tolist() == [1988]
    assert Projection([view(produced=3000, expected=50)], 0.0, max_tokens=2048).ends.tolist() == [1]


def test_expected_lengths_are_raised_by_the_margin() -> None:
    assert Projection([view(expected=100)], 0.2, 2048).ends.tolist() == [119]


def test_the_answer_holds_until_the_batch_changes() -> None:
    controller = rule()
    batch = [view(prompt=1, expected=5)] * 250
    load = LOAD._replace(batch_size=250, batch_tokens=500, running=tuple(batch))
    decision = controller.decide(load)
    assert decision.holds_below_tokens == math.inf
    older = tuple(v._replace(age_s=90.0, produced_tokens=900) for v in batch)
    assert controller.decide(load._replace(running=older, batch_tokens=250 * 900)) == decision
    assert decode(controller, [*older, view()]) == 1410


requests = st.lists(
    st.builds(RequestView, st.floats(0, 5), st.integers(1, 500), st.integers(1, 60), st.floats(1, 80)), min_size=1
)


@given(requests)
def test_a_projection_is_what_a_loop_over_iterations_gives(running: list[RequestView]) -> None:
    ahead = Projection(running, 0.0, 100)
    durations, longest = ahead.segments_s(np.array(HAND.decode_planes(1005)))
    left = [
        max(1, math.ceil((v.expected_tokens if v.expected_tokens > v.produced_tokens else 100) - v.produced_tokens))
        for v in running
    ]
    now_s, ends, times, peak = 0.0, {}, [], 0
    for k in range(max(left)):
        alive = [(n, v) for n, v in zip(left, running, strict=True) if n > k]
        kv = sum(v.prompt_tokens + v.produced_tokens + k for _, v in alive)
        peak = max(peak, kv)
        times.append(HAND.decode_s(len(alive), kv, 1005))
        now_s += times[-1]
        ends[k + 1] = now_s
    assert np.cumsum(durations) == pytest.approx([ends[n] for n in sorted(left)], rel=1e-9)
    assert longest.max() == pytest.approx(max(times))
    assert ahead.kv_peak == peak


@pytest.mark.parametrize(
    ("tokens", "waited_s", "expected"), [(14_900, 0.0, 1005), (19_900, 0.0, 1410), (7_400, 0.3, 1005), (9, 0.7, 1410)]
)
def test_prefill_keeps_the_ttft_of_its_batch(tokens: int, waited_s: float, expected: int) -> None:
    load = LOAD._replace(batch_tokens=tokens, longest_wait_s=waited_s, running=(view(waited_s, tokens),))
    assert rule("prefill").decide(load).clock_mhz == expected


def test_prefill_keeps_the_ttft_of_the_prompts_behind_it() -> None:
    behind = LOAD._replace(batch_tokens=7_000, queued=1, queued_tokens=7_000, waiting=(view(0.0, 7_000),))
    assert rule("prefill").decide(behind).clock_mhz == 1005
    late = behind._replace(waiting=(view(0.1, 7_000),))
    assert rule("prefill").decide(late).clock_mhz > 1005


def test_starts_at_the_lowest_level_and_keeps_its_clock_when_idle() -> None:
    idle = LOAD._replace(batch_size=0, batch_tokens=0)
    assert rule().decide(idle._replace(idle_s=math.inf)).clock_mhz == 1005
    assert rule().decide(idle).clock_mhz == 1200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"min_clock_mhz": 1000}, "min_clock_mhz"), ({"margin": 1.0}, "margin"), ({"step_mhz": 0}, "step_mhz")],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rule(**parameters)

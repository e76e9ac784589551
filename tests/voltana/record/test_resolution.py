"""What a run can tell: intervals of shares and of their difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.record.resolution import attainments_in_words, difference, unclocked, wilson

SHARES = st.tuples(st.integers(1, 5000), st.floats(0, 1)).map(lambda drawn: (round(drawn[0] * drawn[1]), drawn[0]))


def test_known_values() -> None:
    """Newcombe 1998, tables II of both papers: 81 of 263, and 56 of 70 less 48 of 80."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert difference(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(SHARES, SHARES)
def test_intervals_hold_what_was_found_and_are_symmetric(one: tuple[int, int], two: tuple[int, int]) -> None:
    (met, count), (other, others) = one, two
    low, high = wilson(met / count, count)
    assert 0 <= low <= met / count + 1e-12 and met / count - 1e-12 <= high <= 1
    low, high = difference(met / count, count, other / others, others)
    assert low - 1e-12 <= met / count - other / others <= high + 1e-12
    assert difference(other / others, others, met / count, count) == pytest.approx((-high, -low))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).binomial(70, 0.93, size=4000)
    ends = {met: wilson(met / 70, 70) for met in set(draws.tolist())}
    held = np.mean([ends[met][0] <= 0.93 <= ends[met][1] for met in draws.tolist()])
    assert 0.93 < held < 0.98


def summary(submitted: int, share: float | None, **live: object) -> dict[str, object]:
    return {
        "requests": {"submitted": submitted},
        "slo": {"ttft_ms": 600.0, "itl_ms": 60.0},
        "ttft_attainment": share,
        "itl_attainment": 1.0 if submitted else None,
        "live": live,
    }


def test_few_requests_are_told_with_their_interval() -> None:
    (name, text), (_, itl) = attainments_in_words(summary(72, 70 / 72))
    assert (name, text) == (
        "TTFT attainment",
        "97.2 % within 600 ms (90 to 99 with 95 % confidence: 72 requests)",
    )
    assert itl == "100.0 % within 60 ms"
    assert attainments_in_words(summary(4500, 0.972))[0][1] == "97.2 % within 600 ms"
    assert attainments_in_words(summary(0, None))[0][1] == "- within 600 ms"


def test_latencies_of_real_servers_do_not_follow_simulated_clocks() -> None:
    assert unclocked(summary(1, 1.0, servers="sglang", control="simulated"))
    assert unclocked(summary(1, 1.0, servers="attach", control="simulated"))
    assert not unclocked(summary(1, 1.0, servers="sglang", control="nvml"))
    assert not unclocked(summary(1, 1.0, servers="emulated", control="simulated"))
    assert not unclocked({})

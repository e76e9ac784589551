"""One clock per window, from the mean load of the last."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.dynamollm import Window
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import LoadSnapshot, Phase, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
LEVELS = (1005, 1200, 1410)
HAND = EcoPred(
    (1005, 1410),
    [Line(0.02, 200e-6), Line(0.02, 100e-6)],  # carries 5000 and 10000 tokens/s
    [[Plane(0, 0.2e-3, 0)] * len(BIN_ENDS), [Plane(0, 0.1e-3, 0)] * len(BIN_ENDS)],  # 60 ms: 300 and 600 requests
)
LOAD = LoadSnapshot(0.0, 1410, 10, 100, 0, 0, 0.0, 0.0, 0, 0)
START = LOAD._replace(batch_size=0, batch_tokens=0, idle_s=math.inf)


def window(phase: Phase = "decode", **parameters: Any) -> Window:
    return Window(
        phase,
        SLO,
        CLOCKS,
        HAND,
        **shipped("frequency/window", **{"levels_mhz": LEVELS, "static_share": 0.0, **parameters}),
    )


def clocks(controller: Window, *steps: tuple[float, int], phase: Phase = "decode") -> list[int]:
    """Clocks at (time, batch size) in decode, (time, prompt tokens so far in prompts of 100) in prefill."""
    if phase == "decode":
        return [controller.decide(LOAD._replace(time_s=t, batch_size=n)).clock_mhz for t, n in steps]
    return [
        controller.decide(LOAD._replace(time_s=t, arrived_requests=n // 100, arrived_tokens=n)).clock_mhz
        for t, n in steps
    ]


def test_it_starts_at_the_highest_level() -> None:
    controller = window()
    assert controller.decide(START).clock_mhz == 1410
    assert clocks(controller, (0.0, 1), (4.9, 1)) == [1410, 1410]


def test_the_clock_moves_only_at_the_end_of_a_window_whatever_happens_within() -> None:
    assert clocks(window(), (0.0, 100), (2.0, 100), (5.0, 900), (7.5, 900), (9.9, 900), (10.0, 1)) == [
        *(1410, 1410),
        *(1005, 1005, 1005),
        1410,
    ]


@pytest.mark.parametrize(("first", "second", "expected"), [(100, 490, 1005), (100, 520, 1200), (700, 700, 1410)])
def test_the_mean_load_of_the_window_decides(first: int, second: int, expected: int) -> None:
    assert clocks(window(), (0.0, first), (2.0, second), (5.0, 1))[-1] == expected


@pytest.mark.parametrize(("margin", "batch", "expected"), [(0.0, 290, 1005), (0.5, 290, 1410), (0.5, 140, 1005)])
def test_a_margin_takes_from_the_objective(margin: float, batch: int, expected: int) -> None:
    assert clocks(window(margin=margin), (0.0, batch), (5.0, batch))[-1] == expected


def test_of_the_fitting_levels_the_one_of_least_energy_is_not_always_the_lowest() -> None:
    steps = (0.0, 100), (5.0, 100)
    assert clocks(window(static_share=1.0), *steps)[-1] == 1410  # all power static: the sooner done the better
    assert clocks(window(static_share=0.0), *steps)[-1] == 1005


@pytest.mark.parametrize(
    ("tokens_per_s", "expected"),
    [(1000, 1005), (4600, 1005), (4700, 1200), (9000, 1410), (20_000, 1410)],  # 2 * 0.02 / (1 - 200e-6 r) = 0.6: 4667
)
def test_prefill_goes_by_the_rate_of_arriving_tokens(tokens_per_s: int, expected: int) -> None:
    steps = (0.0, 0), (5.0, 5 * tokens_per_s)
    assert clocks(window("prefill"), *steps, phase="prefill")[-1] == expected


def test_a_window_without_work_leads_to_the_lowest_level() -> None:
    controller = window()
    answer = controller.decide(LOAD)
    assert answer.ask_when_idle_s == 5.0
    assert controller.decide(START._replace(time_s=5.1, idle_s=5.0)).clock_mhz == 1005
    assert clocks(controller, (5.2, 900), (10.0, 900), (10.2, 900)) == [1005, 1005, 1410]


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0.001, 3), st.integers(1, 1000)), min_size=1, max_size=40))
def test_changes_are_never_closer_than_a_window(steps: list[tuple[float, int]]) -> None:
    controller, now, chosen, changed_s = window(), 0.0, 1410, 0.0
    for gap, batch in steps:
        now += gap
        (clock,) = clocks(controller, (now, batch))
        if clock != chosen:
            assert now - changed_s >= 5.0 - 1e-6
            chosen, changed_s = clock, now


@pytest.mark.parametrize("bad", [{"interval_s": 0}, {"margin": 1}, {"levels_mhz": [1000]}, {"static_share": -0.1}])
def test_bad_parameters_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(bad))}: found"):
        window(**bad)

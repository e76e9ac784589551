"""POLCA's thresholds on power readings made by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.build import shipped
from voltana.policies.polca import Polca
from voltana.state import LoadSnapshot, Phase

CLOCKS = tuple(range(210, 1411, 15))
LOAD = LoadSnapshot(0.0, 1410, 40, 9000, 0, 0, 0.0, 0.0, 0, 0)
DEFAULTS = {"provisioned_w": 1000, "uncap_after_s": 0.0, "deep_cap_mhz": 1110}  # T1 800 W, T2 890 W


def polca(phase: Phase = "decode", **parameters: Any) -> Polca:
    return Polca(phase, CLOCKS, **shipped("frequency/polca", **{**DEFAULTS, **parameters}))


def clocks(controller: Polca, *readings_w: float | None, step_s: float = 0.1) -> list[int]:
    return [
        controller.decide(LOAD._replace(time_s=i * step_s, cluster_power_w=power_w)).clock_mhz
        for i, power_w in enumerate(readings_w)
    ]


def test_low_priority_is_capped_above_the_first_threshold_and_more_above_the_second() -> None:
    assert clocks(polca(), 700, 799, 801, 889, 891) == [1410, 1410, 1275, 1275, 1110]


def test_high_priority_is_capped_above_the_second_only() -> None:
    assert clocks(polca("prefill"), 700, 801, 889, 891) == [1410, 1410, 1410, 1305]


def test_either_phase_may_be_of_low_priority() -> None:
    assert clocks(polca("prefill", low_priority="prefill"), 801, 891) == [1275, 1110]
    assert clocks(polca("decode", low_priority="prefill"), 801, 891) == [1410, 1305]


def test_a_threshold_is_left_well_below_it() -> None:
    # T2 is left at 840 W, T1 at 750 W
    assert clocks(polca(), 891, 841, 839, 751, 749, 799) == [1110, 1110, 1275, 1275, 1410, 1410]


def test_a_threshold_is_left_only_after_a_while() -> None:
    assert clocks(polca(uncap_after_s=0.3), 801, 700, 700, 700, 700) == [1275, 1275, 1275, 1275, 1410]
    assert clocks(polca(uncap_after_s=0.3), 801, 700, 700, 760, 700, 700) == [1275] * 6


def test_without_a_reading_nothing_is_capped() -> None:
    assert clocks(polca(), None, None) == [1410, 1410]


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=50))
def test_instances_of_a_phase_that_see_the_same_agree_and_promise_nothing(readings_w: list[float]) -> None:
    assert clocks(polca(), *readings_w) == clocks(polca(), *readings_w)
    assert polca().decide(LOAD._replace(cluster_power_w=readings_w[0])).holds_below_tokens == 0


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=50))
def test_power_above_the_second_threshold_always_caps(readings_w: list[float]) -> None:
    for power_w, clock in zip(readings_w, clocks(polca(uncap_after_s=0.2), *readings_w), strict=True):
        assert power_w <= 890 or clock == 1110
        assert power_w <= 800 or clock <= 1275


@pytest.mark.parametrize(
    "parameters", [{"t2": 0.5}, {"t1": 0}, {"low_priority": "both"}, {"low_cap_mhz": 1}, {"provisioned_w": 0}]
)
def test_bad_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(parameters))):
        polca(**parameters)

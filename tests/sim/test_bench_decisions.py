"""The decision-cost benchmark measures what its targets name."""

import re

import pytest

from tests.bench import decisions as bench


def test_targets_name_what_is_measured() -> None:
    for name in bench.TARGETS_US:
        group, option = re.match(r"(policy|router)=(\w+)", name).groups()
        assert option in bench.options(group)


@pytest.mark.parametrize("policy", ["static_max", "voltana"])
def test_every_answer_of_a_run_is_timed(policy: str) -> None:
    spent_ns = bench._controllers_ns(policy)
    assert len(spent_ns) >= 4 and min(spent_ns) > 0


@pytest.mark.slow
def test_every_answer_of_a_scheduler_is_timed() -> None:
    spent_ns = bench._scheduler_ns("queue")
    assert len(spent_ns) > 6 * 75 and min(spent_ns) > 0


def test_a_router_is_timed_on_the_states_that_take_longest() -> None:
    cost = bench._cost("router=ecoroute, one of 2", bench._router_ns("ecoroute", 2))
    assert cost.answers == bench.STATES
    assert 0 < cost.median_us <= cost.p99_us
    assert cost.target_us == 20

"""Each clause of each router, on states made by hand, then the laws."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.errors import UserError
from voltana.routing import EcoRoute, EcoRouteReleased, RandomRouter, RoundRobin
from voltana.state import InstanceLoad, RequestInfo, Router, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
# A request costs 1 ms at 1005 MHz and 0.5 ms at 1410 MHz, and so do 1000 KV tokens. The 60 ms of the objective then are
# 60 units of load (requests plus thousands of KV tokens) at 1005 MHz, then 67.5, 79, 95.3 and 120 at 1410 MHz.
HAND = EcoPred(
    (1005, 1410),
    [Line(0, 0)] * 2,
    [[Plane(0, 1e-3, 1e-6)] * len(BIN_ENDS), [Plane(0, 0.5e-3, 0.5e-6)] * len(BIN_ENDS)],
)
REQUEST = RequestInfo(7, 1.0, 1000)


def ecoroute(**parameters: Any) -> EcoRoute:
    return EcoRoute(SLO, CLOCKS, HAND, **parameters)


def released(**parameters: Any) -> EcoRouteReleased:
    return EcoRouteReleased(SLO, CLOCKS, HAND, **{"margin": 0.0, "tile": 8, **parameters})


def state(requests: int, tokens: int = 0, clock_mhz: int = 1005) -> InstanceLoad:
    return InstanceLoad(clock_mhz, requests, tokens)


CALM = state(10, 10_000)  # 20.0 -> 22.5 units
EDGE = state(30, 29_000)  # 59.1 -> 62.5: the level rises from the lowest
UPPER = state(40, 40_000)  # 80.1 -> 84.0: stays at 1410 of two levels, at 1305 of five
TOP = state(50, 50_000)  # 100.1 -> 104.5: needs 1410
FULL = state(62, 55_000)  # 117.1 -> 122.1: beyond any level


@given(st.integers(1, 8), st.integers(1, 60))
def test_round_robin_is_fair(instances: int, requests: int) -> None:
    router = RoundRobin()
    chosen = [router.route(REQUEST, [CALM] * instances) for _ in range(requests)]
    assert chosen == [i % instances for i in range(requests)]


def test_random_is_uniform() -> None:
    router = RandomRouter(13)
    draws = 4000
    counts = Counter(router.route(REQUEST, [CALM] * 4) for _ in range(draws))
    expected = draws / 4
    assert sum((counts[i] - expected) ** 2 / expected for i in range(4)) < 16.27  # chi-square, 3 degrees, p = 0.001


def test_random_follows_its_seed() -> None:
    first, again, other = (
        [router.route(REQUEST, [CALM] * 3) for _ in range(50)] for router in map(RandomRouter, (1, 1, 2))
    )
    assert first == again != other


# EcoRoute.


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([EDGE, CALM], 1),
        ([CALM, EDGE], 0),
        ([EDGE, UPPER], 1),  # high already is not rising
        ([FULL, UPPER], 1),
        ([FULL, EDGE], 1),  # rising is better than missing the objective
        ([EDGE, FULL, UPPER], 2),
    ],
)
def test_ecoroute_avoids_missing_the_objective_then_rising(candidates: list[InstanceLoad], expected: int) -> None:
    router = ecoroute()
    assert [router.route(REQUEST, candidates) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("same", [CALM, EDGE, UPPER, FULL])
def test_ecoroute_takes_turns_among_equals(same: InstanceLoad) -> None:
    router = ecoroute()
    assert [router.route(REQUEST, [same] * 3) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_ecoroute_takes_turns_among_those_that_do_not_rise() -> None:
    router = ecoroute()
    assert [router.route(REQUEST, [CALM, EDGE, UPPER]) for _ in range(5)] == [0, 2, 0, 2, 0]


def test_ecoroute_turns_go_on_from_the_last_choice() -> None:
    router = ecoroute()
    assert router.route(REQUEST, [EDGE, CALM, EDGE]) == 1
    assert router.route(REQUEST, [CALM, CALM, CALM]) == 2


@pytest.mark.parametrize(
    ("parameters", "prompt", "first"),
    [
        ({}, 1000, 1),  # 30 + 28 units: 61.5 with the request
        ({"margin": -0.35}, 1000, 0),
        ({"growth_tokens": 0}, 900, 0),
        ({"growth_tokens": 0}, 1100, 1),
        ({"settled_tokens": 70}, 1000, 0),  # 60.1 units before: at the upper level already
        ({"levels_mhz": [1095]}, 1000, 0),
        ({"levels_mhz": [1005, 1095, 1410]}, 1000, 1),
    ],
)
def test_ecoroute_judges_the_state_with_the_request(parameters: dict[str, Any], prompt: int, first: int) -> None:
    candidates = [state(30, 28_000), CALM]
    assert ecoroute(**parameters).route(RequestInfo(0, 0.0, prompt), candidates) == first


# EcoRouteReleased.


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([state(127, clock_mhz=1410), state(127)], 1),
        ([state(9), state(3)], 1),
        ([state(3), state(9)], 0),
        ([state(0, clock_mhz=1020), state(127)], 1),  # clock before requests
        ([state(5), state(5)], 0),
    ],
)
def test_released_below_one_tile_takes_the_least_clock_then_requests(
    candidates: list[InstanceLoad], expected: int
) -> None:
    assert released(tile=128).route(REQUEST, candidates) == expected


def test_released_leaves_the_first_rule_when_one_batch_fills_a_tile() -> None:
    candidates = [state(128, 0, 1200), state(1, 0, 1410)]
    assert released(tile=128).route(REQUEST, candidates) == 0  # two levels apart: the lower
    assert released(tile=128).route(REQUEST, [state(1, 0, 1410), state(127, 0, 1200)]) == 1
    candidates = [state(1, 0, 1410), state(128, 0, 1305)]
    assert released(tile=128, margin=-9).route(REQUEST, candidates) == 0  # neither rises: in turn


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([state(10, 10_000, 1410), state(62, 55_000, 1200)], 1),
        ([state(62, 55_000, 1005), state(10, 10_000, 1200)], 0),
        (
            [state(10, 10_000, 1410), state(12, 10_000, 1110), state(11, 10_000, 1200)],
            2,
        ),  # the same level: fewer requests
    ],
)
def test_released_more_than_one_level_apart_takes_the_lowest(candidates: list[InstanceLoad], expected: int) -> None:
    assert released().route(REQUEST, candidates) == expected


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([EDGE, CALM], 1),
        ([EDGE, UPPER], 1),
        ([TOP, CALM], 1),  # stays at the top: counts as rising
        ([FULL, CALM], 1),
        ([state(40, 40_000, 1305), state(50, 50_000, 1410)], 0),  # one level apart
    ],
)
def test_released_prefers_an_instance_that_does_not_rise(candidates: list[InstanceLoad], expected: int) -> None:
    router = released()
    assert [router.route(REQUEST, candidates) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize(
    ("calm", "expected"),
    [
        ([state(9, 0, 1005), state(20, 0, 1095)], 1),  # highest clock, before tiles
        ([state(17), state(16)], 1),  # fewer tiles: 3 and 2
        ([state(9), state(15)], 1),  # the same tiles: more requests
        ([state(15), state(15)], 0),
    ],
)
def test_released_orders_those_that_do_not_rise(calm: list[InstanceLoad], expected: int) -> None:
    router = released()
    assert [router.route(REQUEST, [*calm, EDGE]) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("candidates", [[CALM, UPPER], [EDGE, TOP], [TOP, FULL]])
def test_released_takes_turns_where_all_or_none_rise(candidates: list[InstanceLoad]) -> None:
    router = released()
    assert [router.route(REQUEST, candidates) for _ in range(4)] == [0, 1, 0, 1]


# Laws.

loads = st.lists(
    st.builds(InstanceLoad, st.sampled_from(CLOCKS), st.integers(0, 600), st.integers(0, 300_000)),
    min_size=1,
    max_size=6,
)
requests = st.builds(RequestInfo, st.integers(0, 10**6), st.floats(0, 1e5), st.integers(1, 100_000))


@pytest.mark.parametrize("make", [RoundRobin, lambda: RandomRouter(1), ecoroute, released, lambda: released(tile=128)])
@settings(max_examples=40)
@given(calls=st.lists(st.tuples(requests, loads), min_size=1, max_size=5))
def test_the_answer_is_always_a_candidate(
    make: Callable[[], Router], calls: list[tuple[RequestInfo, list[InstanceLoad]]]
) -> None:
    router = make()
    for request, candidates in calls:
        assert 0 <= router.route(request, candidates) < len(candidates)


@settings(max_examples=60)
@given(calls=st.lists(st.tuples(requests, loads), min_size=1, max_size=5))
def test_ecoroute_never_misses_the_objective_where_it_can_be_met(
    calls: list[tuple[RequestInfo, list[InstanceLoad]]],
) -> None:
    router = ecoroute()
    for request, candidates in calls:
        fits = [
            HAND.decode_s(c.requests + 1, c.tokens + request.prompt_tokens + 50 * c.requests, 1410) <= SLO.itl_s
            for c in candidates
        ]
        assert fits[router.route(request, candidates)] or not any(fits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ecoroute(levels_mhz=[1000]), "levels_mhz: found 1000, allowed: 210 to 1410 MHz in steps of 15"),
        (lambda: ecoroute(margin=2), "margin: found 2, allowed: a number > -10 and <= 0.99"),
        (lambda: ecoroute(settled_tokens=-1), "settled_tokens: found -1, allowed: a number >= 0"),
        (lambda: released(growth_tokens=-1), "growth_tokens: found -1, allowed: a number >= 0"),
        (lambda: released(tile=0), "tile: found 0, allowed: a number >= 1"),
    ],
)
def test_a_bad_parameter_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == message


def rule(request: RequestInfo, candidates: list[InstanceLoad], turn: int, levels: tuple[int, ...]) -> int:
    """EcoRoute as its docstring has it, one instance after another."""

    def lowest(batch: int, tokens: int) -> tuple[int, bool]:
        fitting = [i for i, clock in enumerate(levels) if HAND.decode_s(batch, tokens, clock) <= SLO.itl_s]
        return (fitting[0], True) if fitting else (len(levels) - 1, False)

    def cost(load: InstanceLoad) -> tuple[bool, bool]:
        now, _ = lowest(load.requests, load.tokens + 2 * load.requests)
        then, fits = lowest(load.requests + 1, load.tokens + request.prompt_tokens + 50 * load.requests)
        return not fits, then > now

    in_turn: list[int] = [*range(turn, len(candidates)), *range(turn)]
    return min(in_turn, key=lambda i: cost(candidates[i]))


near_the_boundaries = st.lists(
    st.builds(InstanceLoad, st.just(1410), st.integers(0, 130), st.integers(0, 60).map(lambda n: 1000 * n)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150)
@given(
    calls=st.lists(st.tuples(requests, near_the_boundaries), min_size=1, max_size=4),
    levels=st.sampled_from([(1005, 1410), (1005, 1095, 1200, 1305, 1410), (1200,)]),
)
def test_ecoroute_is_its_rule_whether_it_asks_one_by_one_or_all_at_once(
    calls: list[tuple[RequestInfo, list[InstanceLoad]]], levels: tuple[int, ...]
) -> None:
    router, last = ecoroute(levels_mhz=list(levels)), -1
    for request, candidates in calls:
        last = rule(request, candidates, (last + 1) % len(candidates), levels)
        assert router.route(request, candidates) == last


@settings(max_examples=100)
@given(request=requests, candidates=near_the_boundaries)
def test_many_states_cost_what_each_costs(request: RequestInfo, candidates: list[InstanceLoad]) -> None:
    space = ecoroute(levels_mhz=[1005, 1095, 1200, 1305, 1410])._space
    one_by_one = [space.what_if(request, load).cost for load in candidates]
    assert space.costs(request, candidates).tolist() == one_by_one

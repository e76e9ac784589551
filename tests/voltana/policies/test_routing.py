"""Each clause of each router, on states made by hand, then the laws."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.balancers import RandomRouter, RoundRobin, TileAware
from voltana.policies.build import shipped
from voltana.policies.ecoroute import EcoRoute, EcoRouteReleased
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
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
# Half as quick per request and token at 1005 MHz as at 1410 MHz, and 1 ms more per tile of 128 requests.
STEPS = EcoPred(
    (1005, 1410),
    [Line(0, 0)] * 2,
    [[Plane(8e-3 + 1e-3 * -(-end // 128), a, b) for end in BIN_ENDS] for a, b in ((6e-5, 2.6e-7), (3e-5, 1.3e-7))],
)
RELEASED = "router/ecoroute_released"
REQUEST = RequestInfo(7, 1.0, 1000)


def ecoroute(**parameters: Any) -> EcoRoute:
    return EcoRoute(SLO, CLOCKS, HAND, **shipped("router/ecoroute", **{"margin": 0.0, **parameters}))


def released(**parameters: Any) -> EcoRouteReleased:
    return EcoRouteReleased(SLO, CLOCKS, HAND, **shipped(RELEASED, **{"objective_ms": None, "tile": 8, **parameters}))


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


# The release's two routers.


@pytest.mark.parametrize("make", [EcoRouteReleased, TileAware])
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
def test_below_one_tile_the_released_routers_take_the_least_clock_then_requests(
    make: type[Router], candidates: list[InstanceLoad], expected: int
) -> None:
    router = released(tile=128) if make is EcoRouteReleased else TileAware(tile=128)
    assert [router.route(REQUEST, candidates) for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([EDGE, CALM], 1),
        ([EDGE, UPPER], 0),  # rises to 1095, the other has 1305: more than one level apart, the lower
        ([TOP, UPPER], 1),  # stays at the top: counts as rising
        ([CALM, CALM], 0),  # no turns
        ([EDGE, state(10, 10_000, 1410)], 1),  # the clock in force plays no part
        ([EDGE, state(33, 30_000)], 1),  # both at 1095 with the request: first who does not rise
        ([CALM, state(33, 30_000)], 1),  # of those who do not rise, the higher level
        ([state(17), state(16)], 1),  # of the same level, fewer tiles
        ([state(9), state(15)], 1),  # of the same tiles, more requests
        ([FULL, TOP], 1),  # at the top with the request or beyond: both rise, fewer tiles
    ],
)
def test_the_released_what_if(candidates: list[InstanceLoad], expected: int) -> None:
    router = released()
    assert [router.route(REQUEST, candidates) for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({}, 1), ({"objective_ms": 120}, 0), ({"objective_ms": 120, "margin": 0.5}, 1), ({"margin": -1}, 0)],
)
def test_the_released_what_if_has_an_objective_of_its_own(parameters: dict[str, Any], expected: int) -> None:
    rises_at_60_ms, more_tiles = state(15, 44_000), state(20)
    assert released(**parameters).route(REQUEST, [rises_at_60_ms, more_tiles]) == expected


def written_begin(candidates: list[InstanceLoad]) -> int | None:
    """If every n < 128, the lowest (current clock, n) wins."""
    if all(c.requests < 128 for c in candidates):
        return sorted(range(len(candidates)), key=lambda i: (candidates[i].clock_mhz, candidates[i].requests))[0]
    return None


def written_what_if(predictor: EcoPred, objective_s: float, request: RequestInfo, seen: list[InstanceLoad]) -> int:
    """The release's what-if router as it is written down: signed levels, sorted twice."""
    levels = [1005, 1095, 1200, 1305, 1410]

    def lowest(n: int, tokens: int) -> int:
        return next((mhz for mhz in levels if predictor.decode_s(n, tokens, mhz) <= objective_s), 1410)

    def signed(load: InstanceLoad) -> int:
        now = lowest(load.requests, load.tokens + 2 * load.requests)
        following = lowest(load.requests + 1, load.tokens + request.prompt_tokens + 50 * load.requests)
        return following if following > now or following == 1410 else -now

    if (begin := written_begin(seen)) is not None:
        return begin
    rows = [(signed(c), math.ceil(c.requests / 128), -c.requests, i) for i, c in enumerate(seen)]
    by_size = sorted(rows, key=lambda row: (abs(row[0]), *row[:3]))
    lowest_place, highest_place = (levels.index(abs(by_size[end][0])) for end in (0, -1))
    if highest_place - lowest_place > 1:
        return by_size[0][3]
    return sorted(rows, key=lambda row: row[:3])[0][3]


def written_tile_aware(seen: list[InstanceLoad]) -> int:
    """The release's other router as it is written down."""
    if (begin := written_begin(seen)) is not None:
        return begin
    order = sorted(range(len(seen)), key=lambda i: (math.ceil(seen[i].requests / 128), -seen[i].requests))
    return next((i for i in order if seen[i].requests == 0 or seen[i].requests % 128 != 0), order[0])


def drawn_states(draws: int, *, levels: tuple[int, ...]) -> Iterator[list[InstanceLoad]]:
    """States of one to six instances: many at the borders of tiles, of equal counts, and near the objective."""
    random = Random(20)
    for _ in range(draws):
        top, tokens, spread = random.choice([127, 140, 300, 600]), random.randint(0, 350), random.choice([20, 350])
        yield [
            InstanceLoad(
                random.choice(levels),
                random.choice([0, 1, 127, 128, 129, 255, 256, 257, 384] + [random.randint(0, top)] * 9),
                1000 * max(0, tokens + random.randint(-spread, spread)),
            )
            for _ in range(random.randint(1, 6))
        ]


def test_the_released_routers_are_the_written_rules_in_4000_states() -> None:
    objective_s, tile_aware = 0.05, TileAware(tile=128)
    what_if = EcoRouteReleased(Slo(0.5, objective_s), CLOCKS, STEPS, **shipped(RELEASED, objective_ms=None))
    answers = set()
    for candidates in drawn_states(4000, levels=(1005, 1095, 1200, 1305, 1410)):
        request = RequestInfo(0, 0.0, 1 + 7 * candidates[0].requests)
        chosen = what_if.route(request, candidates), tile_aware.route(request, candidates)
        assert chosen == (written_what_if(STEPS, objective_s, request, candidates), written_tile_aware(candidates))
        answers.add((written_begin(candidates) is None, chosen[0] == chosen[1]))
    assert answers == {(True, True), (True, False), (False, True)}, "no rule went untested"


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


@pytest.mark.slow
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

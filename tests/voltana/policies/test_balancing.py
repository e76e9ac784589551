"""The rules of the plain load balancers on states made by hand, then the laws."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.balancers import LeastRequests, LeastTokens, PowerOfTwo, TileAware
from voltana.state import InstanceLoad, RequestInfo, Router

REQUEST = RequestInfo(7, 1.0, 1000)
BALANCERS: list[Callable[[], Router]] = [
    LeastRequests,
    LeastTokens,
    lambda: PowerOfTwo(3),
    partial(TileAware, tile=128),
]


def loads(*requests: int) -> list[InstanceLoad]:
    """Candidates with so many requests, their tokens in the opposite order."""
    return [InstanceLoad(1410, n, 1000 - n) for n in requests]


@pytest.mark.parametrize(
    ("router", "candidates", "expected"),
    [
        (LeastRequests(), loads(3, 1, 2), 1),
        (LeastTokens(), loads(3, 1, 2), 0),
        (TileAware(tile=8), loads(3, 12, 9), 0),  # fewest tiles
        (TileAware(tile=8), loads(9, 12, 3), 2),
        (TileAware(tile=8), loads(17, 12, 15), 2),  # of equal tiles, most requests
        (TileAware(tile=8), loads(12, 15, 15), 1),  # equals: the first
        (TileAware(tile=8), loads(8, 17, 16), 1),  # full tiles are not open
        (TileAware(tile=8), loads(16, 8, 24), 1),  # none is open: fewest tiles
        (TileAware(tile=8), loads(16, 0, 3), 1),  # an empty instance is open, and has fewest tiles
        (TileAware(tile=128), loads(127, 128), 0),
    ],
)
def test_the_rule(router: Router, candidates: list[InstanceLoad], expected: int) -> None:
    assert router.route(REQUEST, candidates) == expected


@pytest.mark.parametrize("make", [LeastRequests, LeastTokens])
def test_equals_take_turns(make: Callable[[], Router]) -> None:
    router = make()
    assert [router.route(REQUEST, loads(5, 5, 5)) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert router.route(REQUEST, loads(5, 5)) in (0, 1)  # even when there are fewer candidates than before


def test_power_of_two_follows_its_seed_and_never_takes_the_fullest() -> None:
    one, again, other = (
        [router.route(REQUEST, loads(4, 9, 5, 6)) for _ in range(60)] for router in map(PowerOfTwo, (1, 1, 2))
    )
    assert one == again != other
    assert set(one) == {0, 2, 3}


def test_power_of_two_draws_pairs_evenly() -> None:
    """The rank of an instance decides: with 4 of them, the least loaded is in half of the pairs."""
    router, draws = PowerOfTwo(13), 6000
    counts = Counter(router.route(REQUEST, loads(1, 2, 3, 4)) for _ in range(draws))
    expected = {0: draws * 3 / 6, 1: draws * 2 / 6, 2: draws / 6}
    assert sum((counts[i] - n) ** 2 / n for i, n in expected.items()) < 13.82  # chi-square, 2 degrees, p = 0.001


states = st.lists(
    st.builds(InstanceLoad, st.just(1410), st.integers(0, 600), st.integers(0, 300_000)), min_size=1, max_size=6
)


@pytest.mark.slow
@pytest.mark.parametrize("make", BALANCERS)
@given(calls=st.lists(states, min_size=1, max_size=5))
def test_the_answer_is_always_a_candidate(make: Callable[[], Router], calls: list[list[InstanceLoad]]) -> None:
    router = make()
    for candidates in calls:
        assert 0 <= router.route(REQUEST, candidates) < len(candidates)


@given(states)
def test_least_is_least(candidates: list[InstanceLoad]) -> None:
    chosen = candidates[LeastRequests().route(REQUEST, candidates)]
    assert chosen.requests == min(load.requests for load in candidates)
    chosen = candidates[LeastTokens().route(REQUEST, candidates)]
    assert chosen.tokens == min(load.tokens for load in candidates)


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 200))
def test_tile_aware_opens_no_tile_while_one_is_open(instances: int, tile: int, requests: int) -> None:
    """Fed one after another at one clock: even until a tile is full, then no tile is opened while one is open."""
    router, counts = TileAware(tile=tile), [0] * instances
    for _ in range(requests):
        calm = max(counts) < tile
        before = sum(n % tile > 0 for n in counts)
        counts[router.route(REQUEST, loads(*counts))] += 1
        assert max(counts) - min(counts) <= (1 if calm else tile)
        assert calm or before == 0 or sum(n % tile > 0 for n in counts) <= before


@pytest.mark.parametrize("tile", [0, -1, "many", True])
def test_a_bad_tile_is_named(tile: int) -> None:
    with pytest.raises(UserError, match="tile: found"):
        TileAware(tile=tile)

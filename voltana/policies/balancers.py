"""Routers that go by counts alone and need no predictor. For either phase."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from voltana import checks
from voltana.state import InstanceLoad, RequestInfo


class RoundRobin:
    """Each instance in turn."""

    reads_load = False

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Choose the next in turn."""
        chosen = self._next % len(candidates)
        self._next = chosen + 1
        return chosen


class RandomRouter:
    """Any instance with equal probability."""

    reads_load = False

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Draw one."""
        return self._random.randrange(len(candidates))


class LeastRequests:
    """The instance with the fewest requests; of equals, the first after the one chosen last."""

    def __init__(self) -> None:
        self._last = -1

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        self._last = _least([load.requests for load in candidates], self._last + 1)
        return self._last


class LeastTokens:
    """The instance with the fewest tokens: KV tokens in decode, prompt tokens to compute in prefill; equals in turn."""

    def __init__(self) -> None:
        self._last = -1

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        self._last = _least([load.tokens for load in candidates], self._last + 1)
        return self._last


class PowerOfTwo:
    """Two instances drawn at random, of them the one with fewer requests, the first drawn if equal.

    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        if len(candidates) == 1:
            return 0
        first, second = self._random.sample(range(len(candidates)), 2)
        return second if candidates[second].requests < candidates[first].requests else first


class TileAware:
    """Fill open GEMM tiles, as the configuration does that VoltanaLLM's released demo calls EcoRoute (its code).

    Decode time and energy rise in steps of `tile` requests (the rows of a GEMM tile), so a request beyond a full tile
    costs most. While every instance has fewer than `tile` requests, the least (current clock, requests) wins. Else, of
    those whose last tile is open or that are empty, the one with fewest tiles wins, then with most requests; with no
    tile open, the same among all. Requests still in prefill count, as the instance is chosen when a request arrives.
    Equals: the first.

    Args:
        tile: requests per tile.
    """

    at_arrival = True

    def __init__(self, *, tile: int) -> None:
        self._tile = int(checks.number("tile", tile, low=1))

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        tile = self._tile
        calm = least_clock_below_a_tile(candidates, tile)
        if calm is not None:
            return calm
        orders = [(n > 0 and n % tile == 0, -(-n // tile), -n) for n in (load.requests for load in candidates)]
        return orders.index(min(orders))


def least_clock_below_a_tile(candidates: Sequence[InstanceLoad], tile: int) -> int | None:
    """The rule both released routers begin with: while nobody has a full tile, the least (current clock, requests)."""
    calm = [(load.clock_mhz, load.requests) for load in candidates]
    return None if max(n for _, n in calm) >= tile else calm.index(min(calm))


def _least(values: Sequence[int], turn: int) -> int:
    """Index of the least value; of equals, the first from `turn` on."""
    least = min(values)
    return values.index(least, turn) if least in values[turn:] else values.index(least)

"""Plain load balancers: routers that even out load and know nothing of clocks. For either phase."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from voltana import checks
from voltana.state import InstanceLoad, RequestInfo


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
    """Fill the open GEMM tile first, as a variant of VoltanaLLM's released router does for decode (arXiv 2509.04827).

    Decode time and energy rise in steps of `tile` requests (the rows of a GEMM tile), so a request beyond a full tile
    costs most. Among the instances whose last tile is open, the fullest tile wins; if none is open, the instance with
    the fewest requests starts a new one. An empty instance has no open tile. Equals take turns (ours: the released code
    takes the first).

    Args:
        tile: requests per tile.
    """

    def __init__(self, *, tile: int = 128) -> None:
        self._tile = int(checks.number("tile", tile, low=1))
        self._last = -1

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        tile = self._tile
        self._last = _least(
            [tile - filled if (filled := load.requests % tile) else tile + load.requests for load in candidates],
            self._last + 1,
        )
        return self._last


def _least(values: Sequence[int], turn: int) -> int:
    """Index of the least value; of equals, the first from `turn` on."""
    least = min(values)
    return values.index(least, turn) if least in values[turn:] else values.index(least)

"""Routers: which instance takes a request.

A router is built like a frequency controller (see `voltana.build`) and asked once per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana import checks
from voltana.ecopred import BIN_ENDS, EcoPred
from voltana.state import InstanceLoad, RequestInfo, Slo

LAST_OF_BINS = np.array(BIN_ENDS)
AT_ONCE = 4
"""More candidates than this are worth judging all at once, in arrays."""
COSTS = ("nothing", "a higher level", "the objective", "both")
"""What a request may cost at an instance, in the order in which EcoRoute avoids it."""


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


class _WhatIf(NamedTuple):
    """Where an instance stands and where the request would take it, as indices into the levels."""

    now: int
    then: int
    fits: bool
    """Whether some level would still meet the budget."""

    @property
    def cost(self) -> int:
        """What the request costs here, an index into `COSTS`."""
        return 2 * (not self.fits) + (self.then > self.now)


class _StateSpace:
    """The what-if both EcoRoutes share: the lowest level that is predicted to meet the ITL budget at a state.

    Without a request, a decode instance with n requests and l KV tokens is judged at (n, l + `settled_tokens` * n);
    with the request at (n + 1, l + prompt + `growth_tokens` * n): the batch as it will be some iterations on.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        levels_mhz: Sequence[int] | str,
        margin: float,
        settled_tokens: float,
        growth_tokens: float,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        self._budget_s = slo.itl_s * (1 - checks.number("margin", margin, above=-10, high=0.99))
        self._latency = predictor.levels("decode", self._levels)
        self._planes = np.array(self._latency.by_bin).transpose(2, 1, 0).copy()
        self._settled = checks.number("settled_tokens", settled_tokens, low=0)
        self._growth = checks.number("growth_tokens", growth_tokens, low=0)
        self.top = len(self._levels) - 1

    def level_of(self, clock_mhz: int) -> int:
        """Index of the lowest level that is at least a clock."""
        return next((i for i, level in enumerate(self._levels) if level >= clock_mhz), self.top)

    def what_if(self, request: RequestInfo, load: InstanceLoad) -> _WhatIf:
        """Judge one instance."""
        n, tokens = load.requests, load.tokens
        now, _ = self._lowest(n, tokens + self._settled * n)
        then, fits = self._lowest(n + 1, tokens + request.prompt_tokens + self._growth * n)
        return _WhatIf(now, then, fits)

    def _lowest(self, batch: int, kv_tokens: float) -> tuple[int, bool]:
        for index, (fixed_s, per_request_s, per_token_s) in enumerate(self._latency.at(batch)):
            if fixed_s + per_request_s * batch + per_token_s * kv_tokens <= self._budget_s:
                return index, True
        return self.top, False

    def costs(self, request: RequestInfo, loads: Sequence[InstanceLoad]) -> NDArray[Any]:
        """`what_if(...).cost` of many instances, by the same arithmetic in arrays."""
        count = len(loads)
        n, tokens = (np.fromiter(map(field, loads), np.int64, count) for field in (REQUESTS, TOKENS))
        batch = np.concatenate((n, n + 1))
        kv_tokens = np.concatenate(
            (tokens + self._settled * n, tokens + request.prompt_tokens + self._growth * n), dtype=np.float64
        )
        within = self._within(batch, kv_tokens)
        lowest = within.argmax(axis=0)
        fits = within[lowest, np.arange(2 * count)]
        lowest[~fits] = self.top
        costs: NDArray[Any] = 2 * ~fits[count:] + (lowest[count:] > lowest[:count])
        return costs

    def _within(self, batch: NDArray[np.int64], kv_tokens: NDArray[np.float64]) -> NDArray[Any]:
        """Whether each level (row) is predicted to meet the budget at each state (column)."""
        bins = np.minimum(LAST_OF_BINS.searchsorted(batch), len(BIN_ENDS) - 1)
        fixed_s, per_request_s, per_token_s = self._planes.take(bins, axis=2)
        within: NDArray[Any] = fixed_s + per_request_s * batch + per_token_s * kv_tokens <= self._budget_s
        return within


REQUESTS, TOKENS = itemgetter(1), itemgetter(2)
"""Fields of an `InstanceLoad`, by place because that is faster."""


class EcoRoute:
    """The published state-space router for decode (VoltanaLLM, arXiv 2509.04827).

    For every instance it asks which clock level its state needs now, and which it would need with the request. It
    avoids, in this order, an instance that no level would keep within the budget, then one whose level would rise.
    Where that leaves several, they take turns, so that load stays even while no boundary is near.

    Args:
        levels_mhz: clocks of the what-if.
        margin: share of the ITL objective held back, as in EcoFreq.
        settled_tokens, growth_tokens: KV tokens per running request added to the state without and with the request.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int] | str = (1005, 1410),
        margin: float = 0.0,
        settled_tokens: float = 2,
        growth_tokens: float = 50,
    ) -> None:
        self._space = _StateSpace(slo, clocks_mhz, predictor, levels_mhz, margin, settled_tokens, growth_tokens)
        self._last = -1

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        turn = (self._last + 1) % len(candidates)
        self._last = self._least_cost(request, candidates, turn)
        return self._last

    def _least_cost(self, request: RequestInfo, candidates: Sequence[InstanceLoad], turn: int) -> int:
        """The first of least cost, from `turn` on: mostly one of the next few costs nothing."""
        count = len(candidates)
        few = [(turn + k) % count for k in range(min(count, AT_ONCE))]
        least, chosen = len(COSTS), turn
        for index in few:
            cost = self._space.what_if(request, candidates[index]).cost
            if cost < least:
                least, chosen = cost, index
            if least == 0:
                return chosen
        if count == len(few):
            return chosen
        costs = self._space.costs(request, candidates)
        after, before = costs[turn:], costs[:turn]
        first = int(after.argmin()) + turn
        return first if turn == 0 or costs[first] <= before.min() else int(before.argmin())


class EcoRouteReleased:
    """The router as released, which differs from the paper's in its tie rules.

    An instance "rises" if its level would rise or would be the top level. While every batch is below one tile of
    `tile` requests, the least (current clock, requests) wins. Else, if the clocks of the candidates are more than one
    level apart, the lowest clock wins. Else instances that do not rise come first, among them the highest clock, then
    the fewest tiles, then the most requests (which fills the open tile); if all rise or none does, they take turns.

    Args: as `EcoRoute`, and
        tile: requests per GEMM tile.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int] | str = (1005, 1095, 1200, 1305, 1410),
        margin: float = -0.35,
        settled_tokens: float = 2,
        growth_tokens: float = 50,
        tile: int = 128,
    ) -> None:
        self._space = _StateSpace(slo, clocks_mhz, predictor, levels_mhz, margin, settled_tokens, growth_tokens)
        self._tile = int(checks.number("tile", tile, low=1))
        self._turn = RoundRobin()

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        everyone = range(len(candidates))
        if max(load.requests for load in candidates) < self._tile:
            return min(everyone, key=lambda i: (candidates[i].clock_mhz, candidates[i].requests))
        level = [self._space.level_of(load.clock_mhz) for load in candidates]
        if max(level) - min(level) > 1:
            return min(everyone, key=lambda i: (level[i], candidates[i].requests))
        rises = [self._rises(request, load) for load in candidates]
        if all(rises) or not any(rises):
            return self._turn.route(request, candidates)
        return min((i for i in everyone if not rises[i]), key=lambda i: self._fill_order(candidates[i]))

    def _rises(self, request: RequestInfo, load: InstanceLoad) -> bool:
        view = self._space.what_if(request, load)
        return view.then > view.now or view.then == self._space.top

    def _fill_order(self, load: InstanceLoad) -> tuple[int, int, int]:
        return -load.clock_mhz, -(-load.requests // self._tile), -load.requests

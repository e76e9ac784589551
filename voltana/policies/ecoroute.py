"""Routers: which instance takes a request.

A router is built like a frequency controller (see `voltana.policies.build`) and asked once per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana import checks
from voltana.policies.balancers import least_clock_below_a_tile
from voltana.prediction.ecopred import BIN_ENDS, EcoPred
from voltana.state import InstanceLoad, RequestInfo, Slo

LAST_OF_BINS = np.array(BIN_ENDS)
AT_ONCE = 4
"""More candidates than this are worth judging all at once, in arrays."""
COSTS = ("nothing", "a higher level", "the objective", "both")
"""What a request may cost at an instance, in the order in which EcoRoute avoids it."""


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
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        levels_mhz: Sequence[int] | str,
        budget_s: float,
        settled_tokens: float,
        growth_tokens: float,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        self._budget_s = budget_s
        self._latency = predictor.levels("decode", self._levels)
        self._planes = np.array(self._latency.by_bin).transpose(2, 1, 0).copy()
        self._settled = checks.number("settled_tokens", settled_tokens, low=0)
        self._growth = checks.number("growth_tokens", growth_tokens, low=0)
        self.top = len(self._levels) - 1

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
        levels_mhz: Sequence[int] | str,
        margin: float,
        settled_tokens: float,
        growth_tokens: float,
    ) -> None:
        budget_s = checks.budget_s(slo.itl_s, margin)
        self._space = _StateSpace(clocks_mhz, predictor, levels_mhz, budget_s, settled_tokens, growth_tokens)
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
    """The what-if router as released, which chooses by other rules than the paper's (VoltanaLLM's code, `fadr`).

    n is the number of requests at a decode instance, those still in prefill included, as the instance is chosen when a
    request arrives. While every n is below `tile`, the least (current clock, n) wins. Else an instance is judged as
    by EcoRoute, and it "rises" if its level would rise or would be the top level. Its standing is (place, sign, tiles,
    -n): the place, among the levels, of the level it would rise to (sign 1) or that it has (sign -1); tiles of
    `tile` requests, full or open; and the most requests first.

    1. If the least and the greatest standing are more than one place apart, the least wins.
    2. Else those that do not rise come first, of them the highest level; then those that rise, the lowest level first.
       Within a level the fewest tiles win, then the most requests (which fills the open tile).

    Equals: the first.

    Args: as `EcoRoute`, and
        objective_ms: ITL objective of the what-if; None: the run's.
        tile: requests per GEMM tile.
    """

    at_arrival = True
    counts_tokens_sent = False

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int] | str,
        margin: float,
        objective_ms: float | None,
        settled_tokens: float,
        growth_tokens: float,
        tile: int,
    ) -> None:
        budget_s = checks.budget_s(slo.itl_s, margin, objective_ms)
        self._space = _StateSpace(clocks_mhz, predictor, levels_mhz, budget_s, settled_tokens, growth_tokens)
        self._tile = int(checks.number("tile", tile, low=1))

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        calm = least_clock_below_a_tile(candidates, self._tile)
        if calm is not None:
            return calm
        standings = [self._standing(request, load) for load in candidates]
        if max(standings)[0] - min(standings)[0] > 1:
            return standings.index(min(standings))
        orders = [(sign * place, tiles, fewest) for place, sign, tiles, fewest in standings]
        return orders.index(min(orders))

    def _standing(self, request: RequestInfo, load: InstanceLoad) -> tuple[int, int, int, int]:
        view = self._space.what_if(request, load)
        rises = view.then > view.now or view.then == self._space.top
        place = 1 + (view.then if rises else view.now)
        return place, 1 if rises else -1, -(-load.requests // self._tile), -load.requests

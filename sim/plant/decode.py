"""Decode time and energy as piecewise lines in the batch's KV tokens, so that many iterations sum in closed form."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from voltana.sim.plant.throttle import Point

CHORD_GRID = (1024.0, 1.5)
"""First KV tokens and ratio of the grid on which the time under a power limit is solved exactly."""


class Piece(NamedTuple):
    """Seconds, joules and clock as lines in KV tokens, valid from `start` to below `end`."""

    start: float
    end: float
    t0: float
    t1: float
    e0: float
    e1: float
    clock0: float
    clock1: float


def through(start: float, first: Point, end: float, second: Point, valid_to: float) -> Piece:
    """The piece through two points, valid from the first."""
    slopes = [(b - a) / (end - start) for a, b in zip(first, second, strict=True)]
    t, e, c = (a - slope * start for a, slope in zip(first, slopes, strict=True))
    return Piece(start, valid_to, t, slopes[0], e, slopes[1], c, slopes[2])


def at(pieces: Sequence[Piece], kv_tokens: float) -> Piece:
    """The piece that holds at `kv_tokens`."""
    return next(piece for piece in pieces if kv_tokens < piece.end)


class LimitedPieces:
    """The same lines under a power limit: where it bites, chords between exact solutions `solve(kv_tokens)`.

    Within the limit a piece stays exact. The throttled time is a smooth function of KV tokens, so chords whose ends
    are a factor of 1.5 apart miss it by less than 0.3 %. A piece is worked out when it is first asked for.
    """

    def __init__(self, free: Sequence[Piece], limit_w: float, solve: Callable[[float], Point]) -> None:
        self._free = free
        self._limit_w = limit_w
        self._solve = solve
        self._made: list[Piece] = []

    def at(self, kv_tokens: float) -> Piece:
        """The piece that holds at `kv_tokens`."""
        for piece in self._made:
            if piece[0] <= kv_tokens < piece[1]:
                return piece
        made = self._make(kv_tokens)
        self._made.append(made)
        return made

    def _make(self, kv_tokens: float) -> Piece:
        free = at(self._free, kv_tokens)
        low, high, over = next(span for span in _spans(free, self._limit_w) if kv_tokens < span[1])
        if not over:
            return free._replace(start=low, end=high)
        below, above = _grid(kv_tokens)
        start, end = max(low, below), min(high, above)
        return through(start, self._solve(start), end, self._solve(end), end)


def _grid(kv_tokens: float) -> tuple[float, float]:
    """The neighbours on the grid of chords: the last at or below, the first above."""
    first, ratio = CHORD_GRID
    if kv_tokens < first:
        return 0.0, first
    n = int(math.log(kv_tokens / first, ratio))
    n += (first * ratio ** (n + 1) <= kv_tokens) - (first * ratio**n > kv_tokens)
    return first * ratio**n, first * ratio ** (n + 1)


def _spans(piece: Piece, limit_w: float) -> Iterator[tuple[float, float, bool]]:
    """Cut a piece where it crosses the power limit; say of each part whether it is above."""
    excess0, excess1 = piece.e0 - limit_w * piece.t0, piece.e1 - limit_w * piece.t1
    crossing = -excess0 / excess1 if excess1 else math.inf
    cuts = [piece.start, crossing, piece.end] if piece.start < crossing < piece.end else [piece.start, piece.end]
    for low, high in pairwise(cuts):
        middle = 2 * low + 1.0 if math.isinf(high) else 0.5 * (low + high)
        yield low, high, excess0 + excess1 * middle > 0.0

"""Decode time and energy as piecewise lines in the batch's KV tokens, so that many iterations sum in closed form."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from sim.plant.throttle import Point


class Piece(NamedTuple):
    """Seconds, joules and clock as lines in KV tokens, valid below `end`."""

    end: float
    t0: float
    t1: float
    e0: float
    e1: float
    clock0: float
    clock1: float


def through(start: float, first: Point, end: float, second: Point, valid_to: float) -> Piece:
    """The piece through two points."""
    slopes = [(b - a) / (end - start) for a, b in zip(first, second, strict=True)]
    t, e, c = (a - slope * start for a, slope in zip(first, slopes, strict=True))
    return Piece(valid_to, t, slopes[0], e, slopes[1], c, slopes[2])


def at(pieces: Sequence[Piece], kv_tokens: float) -> Piece:
    """The piece that holds at `kv_tokens`."""
    return next(piece for piece in pieces if kv_tokens < piece.end)


def limited(
    pieces: Sequence[Piece], limit_w: float, capacity: float, solve: Callable[[float], Point]
) -> tuple[Piece, ...]:
    """The same lines under a power limit: where it bites, chords between exact solutions `solve(kv_tokens)`.

    Within the limit a piece stays exact. The throttled time is a smooth function of KV tokens, so chords whose ends
    are a factor of 1.5 apart miss it by less than 0.3 %.
    """
    result: list[Piece] = []
    start = 0.0
    for piece in pieces:
        end = piece.end if math.isfinite(piece.end) else max(capacity, 2.0 * start, 1.0)
        for low, high, over in _spans(piece, start, end, limit_w):
            if over:
                result.extend(_chords(low, high, solve))
            else:
                result.append(piece._replace(end=high))
        start = piece.end
    result[-1] = result[-1]._replace(end=math.inf)
    return tuple(result)


def _spans(piece: Piece, start: float, end: float, limit_w: float) -> Iterator[tuple[float, float, bool]]:
    """Cut [start, end) where the piece crosses the power limit; say of each part whether it is above."""
    excess0, excess1 = piece.e0 - limit_w * piece.t0, piece.e1 - limit_w * piece.t1
    crossing = -excess0 / excess1 if excess1 else math.inf
    cuts = [start, crossing, end] if start < crossing < end else [start, end]
    for low, high in pairwise(cuts):
        yield low, high, excess0 + excess1 * 0.5 * (low + high) > 0.0


def _chords(low: float, high: float, solve: Callable[[float], Point]) -> Iterator[Piece]:
    knots = [low]
    knot = 1024.0
    while knot < high:
        if knot > low:
            knots.append(knot)
        knot *= 1.5
    knots.append(high)
    points = [solve(knot) for knot in knots]
    for i in range(len(knots) - 1):
        yield through(knots[i], points[i], knots[i + 1], points[i + 1], knots[i + 1])

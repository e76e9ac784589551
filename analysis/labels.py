"""Names of the markers of a figure that cover each other: a column of names beside each pile, a line to each marker."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
# All in points, 1/72 inch.
_PILED = 9.0
"""Between the middles of markers of which one hides part of the other."""
_MARKER = 4.5
_FONT_SIZE = 7.5
_ROW = 10.0
_DISTANCES = (14, 20, 28, 38, 50, 64, 80, 98, 118, 140, 165, 190)
_DIRECTIONS = 24
_STEPS = 12
"""A line is looked at in so many places."""

_OUTSIDE, _COVERS, _CROSSES, _OVER_BAR = 1e4, 1e3, 40.0, 12.0
"""What a place costs, beside its distance: outside of the axes; over a marker or names; with a line across a marker,
names or another line; over the bar of a marker."""

Spot = tuple[float, float]
Way = tuple[Spot, Spot]


class Point(NamedTuple):
    """A marker: its name, its colour, where it is, and how far its bars reach in x and in y; in data coordinates."""

    name: str
    colour: str
    at: Spot
    x_reach: Spot
    y_reach: Spot


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: _Box, margin: float = 0.0) -> bool:
        wide = self.x0 - margin < other.x1 and other.x0 < self.x1 + margin
        return wide and self.y0 - margin < other.y1 and other.y0 < self.y1 + margin

    def contains(self, spot: Spot) -> bool:
        return self.x0 < spot[0] < self.x1 and self.y0 < spot[1] < self.y1

    def within(self, other: _Box) -> bool:
        return other.x0 <= self.x0 and self.x1 <= other.x1 and other.y0 <= self.y0 and self.y1 <= other.y1


class _Column(NamedTuple):
    """Where names could stand: their box in points, their right or left edge towards the pile, the names' order."""

    box: _Box
    edge: float
    order: list[int]

    def ends(self) -> list[Spot]:
        """Where the lines begin, one a name, from the top."""
        return [(self.edge, self.box.y1 - _ROW * (row + 0.5)) for row in range(len(self.order))]

    def ways(self, spots: Sequence[Spot]) -> list[Way]:
        """The lines, from the names to the markers."""
        return [(end, spots[place]) for place, end in zip(self.order, self.ends(), strict=True)]


class _Taken(NamedTuple):
    """What is there already: markers and names, bars, lines."""

    solid: list[_Box]
    bars: list[_Box]
    ways: list[Way]


def label_piles(axis: Axes, points: Sequence[Point]) -> list[Annotation]:
    """Name every marker that touches another. What all names of the axes begin with is left out.

    Limits and everything else around the axes must be set.
    """
    figure = axis.figure.figure
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    middles = [_in_points(axis, point.at) for point in points]
    taken = _Taken(
        [_around(middle) for middle in middles],
        [box for point, middle in zip(points, middles, strict=True) for box in _bars(axis, point, middle)],
        [],
    )
    names = _short([point.name for point in points])
    scale = 72 / figure.dpi
    inside = _Box(*(float(end) * scale for end in axis.get_window_extent().extents))
    labels: list[Annotation] = []
    for pile in _piles(middles):
        size = _widest(axis, [names[index] for index in pile]), _ROW * len(pile)
        spots = [middles[index] for index in pile]
        column = min(_columns(spots, size), key=lambda each: _cost(inside, each, spots, taken))
        taken.solid.append(column.box)
        taken.ways.extend(column.ways(spots))
        for place, end in zip(column.order, column.ends(), strict=True):
            index = pile[place]
            side = "right" if column.edge == column.box.x1 else "left"
            labels.append(_name(axis, names[index], points[index], middles[index], end, side))
    return labels


def _piles(middles: Sequence[Spot]) -> list[list[int]]:
    """Markers that touch each other, one after the other; those that touch none are left out."""
    piles: list[list[int]] = []
    for index, middle in enumerate(middles):
        touched = [pile for pile in piles if any(math.dist(middle, middles[at]) < _PILED for at in pile)]
        piles = [pile for pile in piles if pile not in touched]
        piles.append(sorted([index, *(at for pile in touched for at in pile)]))
    return sorted(pile for pile in piles if len(pile) > 1)


def _columns(spots: Sequence[Spot], size: Spot) -> Iterator[_Column]:
    """Places around a pile, left and right of it."""
    x, y = (sum(values) / len(spots) for values in zip(*spots, strict=True))
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            towards = 1 if math.cos(angle) >= 0 else -1
            edge = x + distance * math.cos(angle)
            middle = y + (distance + size[1] / 2) * math.sin(angle)
            left, right = (edge, edge + size[0]) if towards > 0 else (edge - size[0], edge)
            box = _Box(left, middle - size[1] / 2, right, middle + size[1] / 2)
            steepness = [math.atan2(spot[1] - middle, towards * (edge - spot[0])) for spot in spots]
            order = sorted(range(len(spots)), key=lambda at: (-steepness[at], at))
            yield _Column(box, edge, order)


def _cost(inside: _Box, column: _Column, spots: Sequence[Spot], taken: _Taken) -> float:
    box = column.box
    ways = column.ways(spots)
    crossed = sum(_crosses(way, each) for way in ways for each in taken.solid)
    crossed += sum(_cross(way, other) for way in ways for other in taken.ways)
    middle = (box.y0 + box.y1) / 2
    return (
        (not box.within(inside)) * _OUTSIDE
        + sum(box.overlaps(each, 2) for each in taken.solid) * _COVERS
        + crossed * _CROSSES
        + sum(box.overlaps(each) for each in taken.bars) * _OVER_BAR
        + math.dist((column.edge, middle), [sum(values) / len(spots) for values in zip(*spots, strict=True)])
    )


def _crosses(way: Way, box: _Box) -> bool:
    """Whether a line goes over a box before it comes near its marker."""
    (x, y), (to_x, to_y) = way
    on_way = [(x + (to_x - x) * step / _STEPS, y + (to_y - y) * step / _STEPS) for step in range(_STEPS)]
    return any(box.contains(spot) and math.dist(spot, way[1]) > 2 * _PILED for spot in on_way)


def _cross(one: Way, other: Way) -> bool:
    """Whether two lines cross."""

    def side(way: Way, spot: Spot) -> float:
        (x, y), (to_x, to_y) = way
        return (to_x - x) * (spot[1] - y) - (to_y - y) * (spot[0] - x)

    return side(one, other[0]) * side(one, other[1]) < 0 and side(other, one[0]) * side(other, one[1]) < 0


def _around(middle: Spot) -> _Box:
    """What a marker covers."""
    x, y = middle
    return _Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER)


def _bars(axis: Axes, point: Point, middle: Spot) -> list[_Box]:
    """What the bars of a marker cover."""
    (left, low), (right, high) = (_in_points(axis, end) for end in zip(point.x_reach, point.y_reach, strict=True))
    x, y = middle
    return [
        *([_Box(left, y - 1, right, y + 1)] if right > left else []),
        *([_Box(x - 1, low, x + 1, high)] if high > low else []),
    ]


def _in_points(axis: Axes, at: Spot) -> Spot:
    x, y = axis.transData.transform(at)
    scale = 72 / axis.figure.figure.dpi
    return float(x) * scale, float(y) * scale


def _short(names: Sequence[str]) -> list[str]:
    """The names without the words that they all begin with, each on one line."""
    names = [" ".join(name.split()) for name in names]
    words = [re.findall(r"[^ =]*[ =]?", name) for name in names]
    shared = 0
    while len(names) > 1 and len({each[shared] for each in words}) == 1 and words[0][shared]:
        shared += 1
    return ["".join(each[shared:]) or name for each, name in zip(words, names, strict=True)]


def _widest(axis: Axes, names: Sequence[str]) -> float:
    text = axis.text(0, 0, "\n".join(names), fontsize=_FONT_SIZE)
    width = text.get_window_extent().width * 72 / axis.figure.figure.dpi
    text.remove()
    return float(width)


def _name(axis: Axes, name: str, point: Point, middle: Spot, end: Spot, side: str) -> Annotation:
    from matplotlib.patheffects import withStroke

    label = axis.annotate(
        name,
        point.at,
        (end[0] - middle[0], end[1] - middle[1]),
        textcoords="offset points",
        ha=side,
        va="center_baseline",
        fontsize=_FONT_SIZE,
        zorder=5,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops={
            "arrowstyle": "-",
            "color": point.colour,
            "linewidth": 0.9,
            "relpos": (1.0 if side == "right" else 0.0, 0.5),
            "patchA": None,
            "shrinkA": 1,
            "shrinkB": 0,
        },
    )
    label.set_in_layout(False)
    return label

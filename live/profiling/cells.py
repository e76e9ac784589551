"""Which loads are measured: candidates by group, and which of a group comes next.

A group is what EcoPred fits one line or plane to: prefill, or a batch bin of decode. Its candidates are a grid over the
group's range. The next cell is always the one farthest from those measured, so a group's first five decode cells are
the corners and the middle of its range, and any further one goes into the largest gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from voltana.app.config import DecodeProfile, PrefillProfile
from voltana.prediction.ecopred import BIN_ENDS
from voltana.state import Phase

GRID = 5
"""Batch sizes and contexts of a decode group."""
PREFILL_GRID = 33


class Cell(NamedTuple):
    """One load: an iteration to be measured."""

    phase: Phase
    batch_size: int
    """Requests."""
    length: int
    """Tokens of each: of a prompt, or of a context."""

    @property
    def tokens(self) -> int:
        """Prompt tokens of the batch, or KV tokens it holds."""
        return self.batch_size * self.length


class Point(NamedTuple):
    """A measured latency, at the load that there really was."""

    phase: Phase
    batch_size: int
    tokens: int
    latency_s: float


class Group(NamedTuple):
    """Candidates that EcoPred will predict by one line or plane."""

    phase: Phase
    cells: tuple[Cell, ...]
    wanted: int
    """Cells to measure before the rest of the time goes where the fit is worst."""

    def next_cell(self, measured: Iterable[Cell]) -> Cell | None:
        """The candidate farthest from the measured ones; None when all are measured."""
        done = set(measured)
        low, high = (np.array(f(self.cells, axis=0)) for f in (_lowest, _highest))
        points = {cell: (np.array(cell[1:]) - low) / np.maximum(1, high - low) for cell in self.cells}
        todo = [cell for cell in reversed(self.cells) if cell not in done]
        near = [points[cell] for cell in self.cells if cell in done]
        if not todo:
            return None
        return max(todo, key=lambda cell: min((float(np.abs(points[cell] - p).sum()) for p in near), default=0.0))


def _lowest(cells: Sequence[Cell], axis: int) -> list[int]:
    return list(np.min([cell[1:] for cell in cells], axis=axis))


def _highest(cells: Sequence[Cell], axis: int) -> list[int]:
    return list(np.max([cell[1:] for cell in cells], axis=axis))


def prefill_group(config: PrefillProfile) -> Group:
    """Batches of whole prompts; a batch below one prompt is one shorter prompt."""
    sizes = np.linspace(*config.tokens, PREFILL_GRID).round().astype(int).tolist()
    length = config.prompt_tokens
    cells = [Cell("prefill", max(1, round(size / length)), min(size, length)) for size in sizes]
    return Group("prefill", tuple(dict.fromkeys(cells)), config.samples)


def decode_groups(config: DecodeProfile, capacity_tokens: int, reserve_tokens: int = 0) -> Iterator[Group]:
    """A group per batch bin, as far as batch size and KV memory go, with room for further tokens of every request."""
    low, high = config.tokens_per_request
    need = low + reserve_tokens
    first = 1
    for last in BIN_ENDS:
        if first > config.max_batch or first * need > capacity_tokens:
            return
        batches = np.linspace(first, min(last, config.max_batch), GRID).round().astype(int).tolist()
        cells = [
            Cell("decode", batch, int(context))
            for batch in dict.fromkeys(batches)
            if batch * need <= capacity_tokens
            for context in _contexts(low, min(high, capacity_tokens // batch - reserve_tokens))
        ]
        yield Group("decode", tuple(cells), config.samples)
        first = last + 1


def _contexts(low: int, high: int) -> Iterable[int]:
    return dict.fromkeys(np.linspace(low, high, GRID).astype(int))


def spread_order(groups: Sequence[Group]) -> list[Group]:
    """Prefill first, then decode from the ends inwards, halving gaps: a profile cut short still covers the range."""
    prefill = [group for group in groups if group.phase == "prefill"]
    decode = [group for group in groups if group.phase == "decode"]
    order: list[int] = []
    for _ in decode:
        rest = [i for i in reversed(range(len(decode))) if i not in order]
        order.append(max(rest, key=lambda i: min((abs(i - j) for j in order), default=0)))
    return prefill + [decode[i] for i in order]


def misfit(points: Sequence[Point]) -> float:
    """Mean relative error when each point of a group is predicted from the others.

    By EcoPred's own form, a line in tokens or a plane in batch size and tokens, coefficients not negative. Without the
    RANSAC of `voltana.prediction.fit`: every point here is a mean. 1.0 where there are too few.
    """
    if not points:
        return 1.0
    columns = [[1.0] * len(points), [float(point.tokens) for point in points]]
    if points[0].phase == "decode":
        columns.append([float(point.batch_size) for point in points])
    features = np.array(columns).T
    features /= features.max(axis=0)
    true = np.array([point.latency_s for point in points])
    if len(points) <= features.shape[1]:
        return 1.0
    errors = []
    for i in range(len(points)):
        rest = np.arange(len(points)) != i
        weights, _ = nnls(features[rest] / true[rest, None], np.ones(len(points) - 1))
        errors.append(abs(float(features[i] @ weights) / true[i] - 1.0))
    return float(np.mean(errors))

"""From the rows of a file to blocks: what can be used, what cannot, what is refused.

A row that cannot be used is left out, counted and told with its line. A cell in a notation that only some readers take
for a number is refused at once, since the file is then not what it seems.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voltana.checks import refused
from voltana.errors import UserError
from voltana.traces.formats import UNITS, Layout
from voltana.traces.stream import Block, Floats, Ints

Rows = Iterator[tuple[int, Sequence[str]]]
"""Line number and the cells of the columns that are used: input, output and perhaps arrival."""

MAX_TOKENS = 1_000_000_000
FAR_S = 3600.0
"""Times whose first is at least so far from 0 count from the first."""

_TOKENS = f"an integer from 1 to {MAX_TOKENS}"
_DATE = "a date and time such as 2023-11-16 18:15:46.68"
_WHOLE = re.compile(r"-?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONG = 300
"""Digits of a number that a float still holds."""


class UnusableError(Exception):
    """A row that cannot be used: why in a few words, and the line of the error where that is not forgiven."""

    def __init__(self, reason: str, error: UserError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


@dataclass
class Tally:
    """What was read of a file and what was left out."""

    strict: bool
    ignored: list[str] = field(default_factory=list)
    counted_from: str | None = None
    """The first time, as the file has it, if times count from it."""
    rows: int = 0
    skipped: dict[str, list[int]] = field(default_factory=dict)
    """Count and first line by reason."""
    first_error: UserError | None = None

    def skip(self, line: int, unusable: UnusableError) -> None:
        """Leave a row out.

        Raises:
            UserError: `strict`, so this is not forgiven.
        """
        if self.strict:
            raise unusable.error
        self.first_error = self.first_error or unusable.error
        self.skipped.setdefault(unusable.reason, [0, line])[0] += 1

    def about(self) -> dict[str, object]:
        """As the summary of a run tells it."""
        return {
            "rows_read": self.rows,
            "skipped": [
                {"reason": reason, "count": count, "first_line": line} for reason, (count, line) in self.skipped.items()
            ],
            "ignored": list(self.ignored),
            "counted_from": self.counted_from,
        }


class Parser:
    """Turns rows into blocks. Rows are checked together; only if one is odd, one by one.

    Args:
        path: of the file, for errors.
        layout: which columns the cells are; its `unit` must be known if times are used.
        tally: is told what is left out.
    """

    def __init__(self, path: str, layout: Layout, tally: Tally) -> None:
        self.path = path
        self.names = layout.names
        self.tally = tally
        self.clock = _Clock(layout.unit, tally) if layout.arrival else None
        self.last_s = 0.0

    def blocks(self, rows: Rows, size: int) -> Iterator[Block]:
        """The rows that can be used, `size` rows of the file at a time."""
        while True:
            chunk: list[tuple[int, Sequence[str]]] = []
            try:
                chunk.extend(islice(rows, size))
            except UserError:
                self._block(chunk)  # what is wrong above is told first
                raise
            if not chunk:
                return
            block = self._block(chunk)
            if len(block.input_tokens):
                yield block

    def _block(self, rows: Sequence[tuple[int, Sequence[str]]]) -> Block:
        self.tally.rows += len(rows)
        return (self._together(rows) if rows else None) or self._one_by_one(rows)

    def _together(self, rows: Sequence[tuple[int, Sequence[str]]]) -> Block | None:
        columns = list(zip(*(cells for _, cells in rows), strict=True))
        try:
            inputs, outputs = _plain_tokens(columns[0]), _plain_tokens(columns[1])
            if self.clock is None:
                return Block(inputs, outputs)
            times = self.clock.column(columns[2])
        except (ValueError, OverflowError):
            return None
        if not np.isfinite(times).all() or times[0] < self.last_s or (np.diff(times) < 0).any():
            return None
        self.last_s = float(times[-1])
        return Block(inputs, outputs, times)

    def _one_by_one(self, rows: Sequence[tuple[int, Sequence[str]]]) -> Block:
        kept = []
        for line, cells in rows:
            try:
                kept.append(self._row(line, cells))
            except UnusableError as unusable:
                self.tally.skip(line, unusable)
        inputs, outputs, times = np.array(kept, dtype=float).reshape(-1, 3).T
        tokens = inputs.astype(np.int64), outputs.astype(np.int64)
        return Block(*tokens, None if self.clock is None else times)

    def _row(self, line: int, cells: Sequence[str]) -> tuple[int, int, float]:
        inputs, outputs = (self._tokens(line, self.names[i], cells[i]) for i in (0, 1))
        return inputs, outputs, 0.0 if self.clock is None else self._time(line, self.clock, cells[2])

    def _tokens(self, line: int, name: str, cell: str) -> int:
        whole = cell.isascii() and cell.isdigit() and len(cell) <= len(str(MAX_TOKENS))
        tokens = int(cell) if whole else int(float(cell)) if _WHOLE.fullmatch(cell) and len(cell) < _LONG else None
        if tokens is not None and 1 <= tokens <= MAX_TOKENS:
            return tokens
        place = f"{self.path}:{line}: {name}"
        if not _WHOLE.fullmatch(cell):
            raise _not_this(place, name, cell, _TOKENS)
        what = "0" if tokens == 0 else "negative" if cell.startswith("-") else f"over {MAX_TOKENS}"
        raise UnusableError(f"{name} is {what}", refused(place, cell, _TOKENS))

    def _time(self, line: int, clock: "_Clock", cell: str) -> float:
        time_s = clock.one(cell)
        if time_s is not None and self.last_s <= time_s < inf:
            self.last_s = time_s
            return time_s
        name = self.names[2]
        place = f"{self.path}:{line}: {name}"
        if time_s is None:
            raise _not_this(place, name, cell, clock.allowed)
        if not isfinite(time_s):
            raise refused(place, cell, clock.allowed)
        if cell.startswith("-"):
            raise UnusableError(f"{name} is negative", refused(place, cell, clock.allowed))
        raise UnusableError(f"{name} is before that of a row above", refused(place, cell, "times that never decrease"))


def _plain_tokens(cells: Sequence[str]) -> Ints:
    together = "".join(cells)
    if not (together.isascii() and together.isdigit()):
        raise ValueError
    tokens = np.array(list(map(int, cells)), dtype=np.int64)
    if tokens.min() < 1 or tokens.max() > MAX_TOKENS:
        raise ValueError
    return tokens


def _not_this(place: str, name: str, cell: str, allowed: str) -> UnusableError:
    """What to do with a cell that is not written as it should be: an empty one or a word can be left out.

    Raises:
        UserError: the cell is a number in another notation.
    """
    error = refused(place, cell, allowed)
    try:
        float(cell)
    except ValueError:
        return UnusableError(f"{name} {'cannot be read' if cell else 'is empty'}", error)
    raise error


class _Clock:
    """Reads arrival cells as seconds of the run."""

    def __init__(self, unit: str | None, tally: Tally) -> None:
        assert unit is not None, "times are read in a known unit"
        self.per_second = UNITS[unit]
        self.tally = tally
        self.first: datetime | None = None
        self.origin: float | None = None
        """What is taken off, in the file's unit."""
        self.allowed = _DATE if self.per_second is None else "a number >= 0"

    def column(self, cells: Sequence[str]) -> Floats:
        """Seconds of the run.

        Raises:
            ValueError: some cell is odd.
        """
        if self.per_second is None:
            return self._dates(cells)
        together = "".join(cells)
        if together.strip("0123456789.eE+-"):
            raise ValueError
        times = _numbers(cells, whole=together.isdigit())
        if times.min() < 0:
            raise ValueError
        if self.origin is None:
            self._begin(times[0], cells[0])
        seconds: Floats = (times - self.origin) / self.per_second
        return seconds

    def one(self, cell: str) -> float | None:
        """Seconds of the run; None for a cell that is not written as the unit demands."""
        if self.per_second is None:
            try:
                return float(self._dates([cell])[0])
            except ValueError:
                return None
        if not _NUMBER.fullmatch(cell):
            return None
        number = int(cell) if cell.isdigit() and len(cell) < _LONG else float(cell)
        if self.origin is None and 0 <= number < inf:
            self._begin(number, cell)
        return (number - (self.origin or 0)) / self.per_second

    def _begin(self, first: float, cell: str) -> None:
        assert self.per_second is not None
        far = FAR_S * self.per_second <= first < inf
        self.origin = first if far else 0
        self.tally.counted_from = cell if far else None

    def _dates(self, cells: Sequence[str]) -> Floats:
        if not all(map(is_date, cells)):
            raise ValueError
        moments = list(map(datetime.fromisoformat, cells))
        if self.first is None:
            self.first, self.tally.counted_from = _aware(moments[0]), cells[0]
        first = self.first if moments[0].tzinfo else self.first.replace(tzinfo=None)
        try:
            return np.array([(moment - first).total_seconds() for moment in moments])
        except TypeError:  # some with a time zone, some without
            return np.array([(_aware(moment) - self.first).total_seconds() for moment in moments])


def _numbers(cells: Sequence[str], *, whole: bool) -> NDArray[Any]:
    """Integers where they fit, since floats round nanoseconds of Unix time."""
    if whole:
        with suppress(OverflowError, ValueError):
            return np.array(list(map(int, cells)), dtype=np.int64)
    return np.array(list(map(float, cells)))


def _aware(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_date(cell: str) -> bool:
    """Whether a cell is a date and time in ISO 8601, and nothing else that a reader of dates takes for one."""
    return cell[4:5] == "-" and cell[10:11] in ("T", " ") and cell.isascii()

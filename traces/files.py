"""Request lengths and arrival times from a file: our own columns, a well-known public format, or named columns."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from voltana.checks import flag, optional_integer, refused
from voltana.errors import UserError
from voltana.traces.formats import ROLES, UNITS, WHOLE, Layout, layout
from voltana.traces.lines import CsvLines, JsonLines
from voltana.traces.rows import Parser, Rows, Tally, is_date
from voltana.traces.stream import Block, within_context

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
ABSURD_PER_S = 10_000
LOOKED_AT, ENOUGH = 1000, 100
"""Rows at the beginning that imply the rate which is checked, and of how many gaps it takes."""


class FileTrace:
    """Requests from a CSV or JSON-lines file, read in blocks.

    Arrival times are read only for a process that wants them. They count from the start of the run, as in the file;
    dates, and numbers whose first is an hour or more from 0 (Unix time), count from the first row that is used. A row
    that cannot be used is left out and told of by `report`.

    Args:
        path: of the file.
        repeat: start over when the file ends; there are no arrival times then.
        columns: names of the file's columns by `input_tokens`, `output_tokens`, `arrival_s`; what is null there is
            recognised.
        time_unit: s, ms, us, ns or datetime; null: that of the format.
        strict: stop at the first row that cannot be used.
        max_total_tokens: drop requests with more input and output tokens together.

    Raises:
        UserError: an argument is wrong, or the file has no request that can be used.
    """

    def __init__(
        self,
        *,
        path: str | None,
        repeat: bool = False,
        columns: Mapping[str, Any] | None = None,
        time_unit: str | None = None,
        strict: bool = False,
        max_total_tokens: int | None = None,
    ) -> None:
        if not isinstance(path, str) or not path.endswith(SUFFIXES):
            raise refused("trace.path", path, f"a file ending in {', '.join(SUFFIXES)}")
        if not Path(path).is_file():
            raise refused("trace.path", path, "a file that exists")
        if time_unit is not None and time_unit not in UNITS:
            raise refused("trace.time_unit", time_unit, f"null, {', '.join(UNITS)}")
        self.path = path
        self.repeat = flag("trace.repeat", repeat)
        self.columns = _named_columns(columns)
        self.time_unit = time_unit
        self.strict = flag("trace.strict", strict)
        self.max_total_tokens = optional_integer("trace.max_total_tokens", max_total_tokens, least=2)
        self._tally = Tally(self.strict)
        next(self._read(1, self._tally, timed=False))

    @property
    def ends(self) -> bool:
        """Whether the requests come to an end."""
        return not self.repeat

    def report(self) -> dict[str, object]:
        """What was read and what was left out: `rows_read`, `skipped`, `ignored`, `counted_from`."""
        return self._tally.about()

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield the file's requests without their times (see `traces.LengthSource`)."""
        self._tally = Tally(self.strict)
        return within_context(self._cycle(size), self.max_total_tokens)

    def timed_blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield the file's requests with their times (see `traces.LengthSource`).

        Raises:
            UserError: there are none, they start over, or their unit is not known or cannot be right.
        """
        if self.repeat:
            raise refused("trace.repeat", True, "false with arrival=timestamps, as times cannot start over")
        first = next(self._read(LOOKED_AT, Tally(self.strict), timed=True))
        self._check_rate(first)
        self._tally = Tally(self.strict)
        return within_context(self._read(size, self._tally, timed=True), self.max_total_tokens)

    def _check_rate(self, block: Block) -> None:
        assert block.arrival_s is not None
        gaps, span_s = len(block.arrival_s) - 1, float(block.arrival_s[-1] - block.arrival_s[0])
        if self.time_unit is None and gaps >= ENOUGH and gaps >= ABSURD_PER_S * span_s:
            raise UserError(
                f"{self.path}: found {gaps + 1} requests in {span_s:g} s, allowed: less than {ABSURD_PER_S:,}/s, "
                f"unless trace.time_unit states the unit of the times ({', '.join(UNITS)})"
            )

    def _cycle(self, size: int) -> Iterator[Block]:
        yield from self._read(size, self._tally, timed=False)
        while self.repeat:
            yield from self._read(size, Tally(strict=False), timed=False)

    def _read(self, size: int, tally: Tally, *, timed: bool) -> Iterator[Block]:
        with _readable(self.path), _open(self.path) as lines:
            reader = (JsonLines if self.path.removesuffix(".gz").endswith(".jsonl") else CsvLines)(self.path, lines)
            found = layout(self.path, reader.columns, self.columns, self.time_unit, timed=timed)
            tally.ignored = found.ignored
            rows = reader.rows(found.names, tally)
            if found.arrival is not None:
                found, rows = self._with_unit(found, rows)
            empty = True
            for block in Parser(self.path, found, tally).blocks(rows, size):
                empty = False
                yield block
            if empty:
                raise tally.first_error or UserError(f"{self.path}: found no requests, allowed: at least one")

    def _with_unit(self, found: Layout, rows: Rows) -> tuple[Layout, Rows]:
        """Dates tell their unit themselves; numbers do not."""
        first = next(rows, None)
        if first is None:
            return found._replace(unit="s"), rows
        line, (_, _, time) = first
        unit = self.time_unit or ("datetime" if is_date(time) else found.unit)
        odd = (unit == "datetime" and not is_date(time)) or (unit in WHOLE and "." in time)
        if unit is None or (self.time_unit is None and odd):
            place = f"{self.path}:{line}: {found.arrival}"
            raise refused(place, time, f"times in a unit that trace.time_unit states ({', '.join(UNITS)})")
        return found._replace(unit=unit), chain([first], rows)


def _named_columns(columns: Mapping[str, Any] | None) -> dict[str, str | None]:
    given = {} if columns is None else columns
    if not isinstance(given, Mapping) or set(given) - set(ROLES):
        raise refused("trace.columns", given, f"null or a mapping of {', '.join(ROLES)} to names of columns")
    for role, name in given.items():
        if name is not None and not isinstance(name, str):
            raise refused(f"trace.columns.{role}", name, "null or the name of a column")
    return {role: given.get(role) for role in ROLES}


def _open(path: str) -> TextIO:
    if path.endswith(".gz"):
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return Path(path).open(encoding="utf-8-sig", newline="")


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: found an unreadable file ({error}), allowed: UTF-8 text, gzipped if .gz") from error

"""Request lengths and arrival times from a file: our own columns, or one of the well-known public formats."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import TextIO, cast

import numpy as np

from traces.checks import fail, flag, optional_integer
from traces.stream import Block, Floats, Ints, within_context
from voltana.errors import UserError

Rows = Iterator[tuple[int, Sequence[str]]]
"""Line number and the cells of the columns that are used: input, output and perhaps arrival."""

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
MAX_TOKENS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Format:
    """Column names of one format. `per_second` counts units of the arrival column; None: dates with time."""

    input_tokens: str
    output_tokens: str
    arrival: str
    per_second: float | None

    def used(self, columns: Sequence[str]) -> list[str]:
        """Name the columns to read; arrival times are optional."""
        return [self.input_tokens, self.output_tokens, *([self.arrival] if self.arrival in columns else [])]


FORMATS = (
    Format("input_tokens", "output_tokens", "arrival_s", per_second=1),
    Format("ContextTokens", "GeneratedTokens", "TIMESTAMP", per_second=None),  # Azure LLM inference 2023
    Format("input_length", "output_length", "timestamp", per_second=1e3),  # Mooncake, FAST'25 release
    Format("num_prefill_tokens", "num_decode_tokens", "arrived_at", per_second=1),  # Vidur, Sarathi, Etalon
    Format("prompt_len", "output_len", "req_time", per_second=1),  # ShareGPT lengths; LMSYS arena as in VTC
    Format("input_toks", "output_toks", "arrival_time_ns", per_second=1e9),  # LLMServingSim
)


class FileTrace:
    """Requests from a CSV or JSON-lines file, read in blocks.

    Arrival times count from the start of the run, as in the file; dates count from the first row. With `repeat`
    the file starts over when it ends, and its arrival times are not used.
    """

    def __init__(self, *, path: str | None, repeat: bool = False, max_total_tokens: int | None = None) -> None:
        if not isinstance(path, str) or not path.endswith(SUFFIXES):
            raise fail("trace.path", path, f"a file ending in {', '.join(SUFFIXES)}")
        if not Path(path).is_file():
            raise fail("trace.path", path, "a file that exists")
        self.path = path
        self.repeat = flag("trace.repeat", repeat)
        self.max_total_tokens = optional_integer("trace.max_total_tokens", max_total_tokens, least=2)
        next(self._read(1))

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield the file's requests (see `traces.LengthSource`)."""
        return within_context(self._cycle(size) if self.repeat else self._read(size), self.max_total_tokens)

    def _cycle(self, size: int) -> Iterator[Block]:
        while True:
            for block in self._read(size):
                yield block._replace(arrival_s=None)

    def _read(self, size: int) -> Iterator[Block]:
        with _readable(self.path), _open(self.path) as lines:
            layout, rows = _json_rows(self.path, lines) if ".jsonl" in self.path else _csv_rows(self.path, lines)
            parser = _Parser(self.path, layout)
            empty = True
            while chunk := list(islice(rows, size)):
                yield parser.block(chunk)
                empty = False
            if empty:
                raise UserError(f"{self.path}: found no requests, allowed: at least one")


def _open(path: str) -> TextIO:
    if path.endswith(".gz"):
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return Path(path).open(encoding="utf-8-sig", newline="")


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise UserError(f"{path}: found an unreadable file ({error}), allowed: UTF-8 text, gzipped if .gz") from error


def _csv_rows(path: str, lines: TextIO) -> tuple["_Layout", Rows]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    layout = _layout(path, header)
    pick = itemgetter(*(header.index(name) for name in layout.names))

    def rows() -> Rows:
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, pick(row)
            elif row:
                raise UserError(f"{path}:{reader.line_num}: found {len(row)} fields, allowed: {len(header)}")

    return layout, rows()


def _json_rows(path: str, lines: TextIO) -> tuple["_Layout", Rows]:
    records = _json_records(path, lines)
    first_line, first = next(records, (1, {}))
    layout = _layout(path, list(first))

    def cells(line: int, record: dict[str, object]) -> tuple[int, Sequence[str]]:
        for name in layout.names:
            if name not in record:
                raise UserError(f"{path}:{line}: found no {name}, allowed: the keys of the first line")
        return line, [str(record[name]) for name in layout.names]

    def rows() -> Rows:
        yield cells(first_line, first)
        for line, record in records:
            yield cells(line, record)

    return layout, rows()


def _json_records(path: str, lines: TextIO) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise fail(f"{path}:{line}", text.strip()[:40], "a JSON object")
        yield line, record


@dataclass(frozen=True, slots=True)
class _Layout:
    names: list[str]
    per_second: float | None


def _layout(path: str, columns: Sequence[str]) -> _Layout:
    for known in FORMATS:
        if known.input_tokens in columns and known.output_tokens in columns:
            return _Layout(known.used(columns), known.per_second)
    allowed = "; ".join(f"{known.input_tokens}, {known.output_tokens}[, {known.arrival}]" for known in FORMATS)
    raise UserError(f"{path}:1: found columns {', '.join(columns) or 'none'}, allowed: {allowed}")


class _Parser:
    """Turns rows into blocks. Blocks are checked as a whole; only a bad one is searched row by row."""

    def __init__(self, path: str, layout: _Layout) -> None:
        self.path = path
        self.names = layout.names
        self.seconds = _Seconds(layout.per_second)
        self.last_s = 0.0

    def block(self, rows: list[tuple[int, Sequence[str]]]) -> Block:
        lines, cells = zip(*rows, strict=True)
        columns = list(zip(*cells, strict=True))
        inputs, outputs = (self._tokens(self.names[i], lines, columns[i]) for i in (0, 1))
        arrival_s = self._times(lines, columns[2]) if len(columns) > 2 else None
        return Block(inputs, outputs, arrival_s)

    def _tokens(self, name: str, lines: Sequence[int], cells: Sequence[str]) -> Ints:
        try:
            tokens = np.array(list(map(int, cells)), dtype=np.int64)
            if tokens.min() >= 1 and tokens.max() <= MAX_TOKENS:
                return tokens
        except (ValueError, OverflowError):
            pass
        line, cell = next((line, cell) for line, cell in zip(lines, cells, strict=True) if not _is_token_count(cell))
        raise fail(f"{self.path}:{line}: {name}", cell, f"an integer from 1 to {MAX_TOKENS}")

    def _times(self, lines: Sequence[int], cells: Sequence[str]) -> Floats:
        try:
            times = self.seconds.column(cells)
        except ValueError:
            raise self._bad_time(lines, cells) from None
        if not np.isfinite(times).all() or times[0] < self.last_s or (np.diff(times) < 0).any():
            raise self._bad_time(lines, cells)
        self.last_s = float(times[-1])
        return times

    def _bad_time(self, lines: Sequence[int], cells: Sequence[str]) -> UserError:
        last_s = self.last_s
        for line, cell in zip(lines, cells, strict=True):
            place = f"{self.path}:{line}: {self.names[2]}"
            try:
                time_s = float(self.seconds.column([cell])[0])
            except ValueError:
                return fail(place, cell, self.seconds.allowed)
            if not isfinite(time_s) or (time_s < 0 and self.seconds.per_second is not None):
                return fail(place, cell, self.seconds.allowed)
            if time_s < last_s:
                return fail(place, cell, "times that never decrease")
            last_s = time_s
        raise AssertionError("a bad block has a bad row")


def _is_token_count(cell: str) -> bool:
    try:
        return 1 <= int(cell) <= MAX_TOKENS
    except ValueError:
        return False


class _Seconds:
    """Reads arrival cells as seconds."""

    def __init__(self, per_second: float | None) -> None:
        self.per_second = per_second
        self.first: datetime | None = None
        self.allowed = "a number >= 0" if per_second else "a date and time such as 2023-11-16 18:15:46.68"

    def column(self, cells: Sequence[str]) -> Floats:
        if self.per_second is not None:
            return np.array(list(map(float, cells))) / self.per_second
        return np.array([self._since_first(cell) for cell in cells])

    def _since_first(self, cell: str) -> float:
        moment = datetime.fromisoformat(cell)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        self.first = self.first or moment
        return (moment - self.first).total_seconds()

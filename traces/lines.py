"""The lines of CSV and JSON-lines files as cells of text."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, TextIO

from voltana.checks import refused
from voltana.errors import UserError
from voltana.traces.rows import Rows, Tally, UnusableError

csv.field_size_limit(1 << 24)  # prompts may stand in columns that are not used


class CsvLines:
    """A CSV file; its first line names the columns.

    Raises:
        UserError: a line breaks the rules of quoting; what follows cannot be told apart.
    """

    def __init__(self, path: str, lines: TextIO) -> None:
        self.path = path
        self._reader = csv.reader(lines, strict=True)
        with self._quoting():
            self.columns = [name.strip() for name in next(self._reader, [])]

    def rows(self, names: Sequence[str], tally: Tally) -> Rows:
        """The cells of the named columns, line by line; lines with more or fewer cells are skipped."""
        fields = len(self.columns)
        pick = itemgetter(*(self.columns.index(name) for name in names))
        reader = self._reader
        with self._quoting():
            for row in reader:
                if len(row) == fields:
                    yield reader.line_num, pick(row)
                elif row:
                    tally.rows += 1
                    tally.skip(reader.line_num, self._unusable(len(row)))

    def _unusable(self, found: int) -> UnusableError:
        place = f"{self.path}:{self._reader.line_num}"
        error = UserError(f"{place}: found {found} fields, allowed: {len(self.columns)}")
        return UnusableError("the line has more or fewer fields than the first", error)

    @contextmanager
    def _quoting(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            place = f"{self.path}:{self._reader.line_num}"
            raise UserError(f"{place}: found a line that is not CSV ({error}), allowed: quotes that close") from error


class JsonLines:
    """A JSON object a line; the keys of the first one name the columns.

    Raises:
        UserError: the first line is none, or has a key twice.
    """

    def __init__(self, path: str, lines: TextIO) -> None:
        self.path = path
        self._lines = ((line, text) for line, text in enumerate(lines, start=1) if text.strip())
        self._first = next(self._lines, None)
        self.columns: list[str] = []
        if self._first is not None:
            record = _object(self._first[1], pairs=True)
            if not isinstance(record, list) or not self._first[1].lstrip().startswith("{"):
                raise self._bad(*self._first)
            self.columns = [name for name, _ in record]

    def rows(self, names: Sequence[str], tally: Tally) -> Rows:
        """The cells of the named columns, line by line; lines that lack one are skipped."""
        if self._first is not None:
            yield from self._cells([self._first], names, tally)
        yield from self._cells(self._lines, names, tally)

    def _cells(self, lines: Iterable[tuple[int, str]], names: Sequence[str], tally: Tally) -> Rows:
        for line, text in lines:
            record = _object(text)
            try:
                yield line, [_cell(record[name]) for name in names]
            except (KeyError, TypeError):
                tally.rows += 1
                tally.skip(line, self._unusable(line, text, record, names))

    def _unusable(self, line: int, text: str, record: object, names: Sequence[str]) -> UnusableError:
        if not isinstance(record, dict):
            return UnusableError("the line is not a JSON object", self._bad(line, text))
        name = next(name for name in names if name not in record)
        error = UserError(f"{self.path}:{line}: found no {name}, allowed: the keys of the first line")
        return UnusableError(f"{name} is missing", error)

    def _bad(self, line: int, text: str) -> UserError:
        return refused(f"{self.path}:{line}", text.strip()[:40], "a JSON object")


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _object(text: str, *, pairs: bool = False) -> Any:
    """What a line says, None if it is not JSON; `pairs`: objects as lists of keys and values, doubled keys too."""
    try:
        return json.loads(text, object_pairs_hook=list if pairs else None)
    except (ValueError, RecursionError):
        return None

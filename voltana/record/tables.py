"""Tables that grow row by row and survive a crash."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voltana.files import PART, on_disk, writing
from voltana.record.schema import JOURNALS

KEEP_EVERY_S = 2.0
"""Rows that are not in the journal yet are no older."""


class TableWriter:
    """Writes a Parquet file, a row group per `chunk_rows`, under a temporary name until it is whole.

    A Parquet file cannot be read before its end is written. So rows older than `KEEP_EVERY_S` are also in a journal,
    which a run shorter than that never opens.

    Args:
        path: of the finished table.
        schema: its columns.
        chunk_rows: rows held in memory.
    """

    def __init__(self, path: Path, schema: pa.Schema, chunk_rows: int) -> None:
        self._path = path
        self._schema = schema
        self._chunk_rows = chunk_rows
        self._rows: list[tuple[Any, ...]] = []
        self._kept = 0
        """Rows at the head of `_rows` that the journal has."""
        self._keep_at_s = time.monotonic() + KEEP_EVERY_S
        with writing(path):
            self._parquet = pq.ParquetWriter(self._parquet_path, schema)
        self._journal: pa.ipc.RecordBatchStreamWriter | None = None
        self._journal_file: Any = None

    def append(self, row: tuple[Any, ...]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) >= self._chunk_rows:
            self._flush()
        elif time.monotonic() >= self._keep_at_s:
            self.keep()

    def keep(self) -> None:
        """Put all rows so far where they survive the process: with the kernel, which writes them in its own time.

        To wait for the disk takes 5 to 15 ms, in which a live run would neither route nor decide.
        """
        new = self._rows[self._kept :]
        if new:
            with writing(self._journal_path):
                self._open_journal().write_batch(self._batch(new))
                self._journal_file.flush()
            self._kept = len(self._rows)
        self._keep_at_s = time.monotonic() + KEEP_EVERY_S

    def finish(self) -> None:
        """Make the file whole and put it on disk, still under its temporary name."""
        self._write_parquet()
        with writing(self._path):
            self._parquet.close()
            with self._parquet_path.open("rb") as file:
                on_disk(file)

    def publish(self) -> None:
        """Give the finished file its name."""
        self._parquet_path.replace(self._path)

    def abandon(self) -> None:
        """Leave the rows so far in the journal, and no table."""
        with suppress(OSError):
            self._parquet.close()
        self._parquet_path.unlink(missing_ok=True)
        self.keep()
        self._close_journal()

    def remove_journal(self) -> None:
        """The table is whole, and its summary there."""
        self._close_journal()
        self._journal_path.unlink(missing_ok=True)

    @property
    def _parquet_path(self) -> Path:
        return self._path.with_name(self._path.name + PART)

    @property
    def _journal_path(self) -> Path:
        return self._path.with_name(JOURNALS[self._path.name])

    def _open_journal(self) -> pa.ipc.RecordBatchStreamWriter:
        if self._journal is None:
            self._journal_file = self._journal_path.open("wb")
            self._journal = pa.ipc.new_stream(self._journal_file, self._schema)
        return self._journal

    def _close_journal(self) -> None:
        if self._journal is not None:
            with writing(self._journal_path):
                self._journal.close()
                self._journal_file.close()
            self._journal = None

    def _flush(self) -> None:
        self.keep()
        self._write_parquet()

    def _write_parquet(self) -> None:
        with writing(self._path):
            self._parquet.write_batch(self._batch(self._rows))
        self._rows.clear()
        self._kept = 0

    def _batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = zip(*rows, strict=True) if rows else [()] * len(self._schema)
        arrays = [_column(values, field) for values, field in zip(columns, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def _column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """An Arrow column. `pyarrow.array` would do, but it imports pandas, which costs more than a whole small run."""
    if pa.types.is_dictionary(field.type):
        names = {name: code for code, name in enumerate(dict.fromkeys(v for v in values if v is not None))}
        codes = _column([None if v is None else names[v] for v in values], pa.field("code", pa.int32()))
        return pa.DictionaryArray.from_arrays(codes, _strings(list(names)))
    missing = [v is None for v in values] if field.nullable else []
    if any(missing):
        present = np.packbits(~np.array(missing), bitorder="little")
        buffers, nulls = [pa.py_buffer(present)], sum(missing)
        values = [0 if v is None else v for v in values]
    else:
        buffers, nulls = [None], 0
    data = np.array(values, dtype=_DTYPES[field.type])
    return pa.Array.from_buffers(field.type, len(values), [*buffers, pa.py_buffer(data)], nulls)


def _strings(values: Sequence[str]) -> pa.Array:
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


_DTYPES = {pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}

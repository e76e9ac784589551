"""The run record: one folder per run, written the same by the simulator and by the live harness.

    config.yaml        the resolved configuration
    summary.json       the numbers of the run (`voltana.summary`)
    requests.parquet   one row a request, in the order of their ends
    instances.parquet  one row wherever the state of an instance changes

Rows are streamed to disk in chunks, so memory does not grow with the run, and the files are valid after an
interruption as long as the writer was closed. The same rows give the same bytes.

In `instances.parquet` a row holds from its `time_s` until the next row of the same instance, the last one until
`end_s` of the summary. While a decode batch stays the same its KV tokens grow by one per request and iteration;
`kv_tokens` is the value at the start of the row and `power_w` the mean over it, so that the sum of power times
duration over the rows of an instance is its energy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from voltana.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CONFIG, SUMMARY, REQUESTS, INSTANCES = "config.yaml", "summary.json", "requests.parquet", "instances.parquet"

COMPLETED, FAILED, UNFINISHED = "completed", "failed", "unfinished"


class RequestRow(NamedTuple):
    """One request. What did not happen is None: the times of a failed request, the ITL of a one-token answer."""

    request_id: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefill_instance: str | None
    decode_instance: str | None
    prefill_start_s: float | None
    first_token_s: float | None
    decode_start_s: float | None
    finish_s: float | None
    ttft_s: float | None
    mean_itl_s: float | None
    max_itl_s: float | None
    status: str


class InstanceRow(NamedTuple):
    """The state of an instance from `time_s` on."""

    time_s: float
    instance: str
    phase: str
    clock_mhz: int
    batch_size: int
    kv_tokens: int
    queued: int
    power_w: float


_NAME = pa.dictionary(pa.int32(), pa.string())

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("arrival_s", pa.float64(), nullable=False),
        pa.field("input_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("prefill_instance", _NAME),
        pa.field("decode_instance", _NAME),
        *(pa.field(name, pa.float64()) for name in RequestRow._fields[6:13]),
        pa.field("status", _NAME, nullable=False),
    ]
)

INSTANCE_SCHEMA = pa.schema(
    [
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("instance", _NAME, nullable=False),
        pa.field("phase", _NAME, nullable=False),
        pa.field("clock_mhz", pa.int32(), nullable=False),
        pa.field("batch_size", pa.int32(), nullable=False),
        pa.field("kv_tokens", pa.int64(), nullable=False),
        pa.field("queued", pa.int32(), nullable=False),
        pa.field("power_w", pa.float64(), nullable=False),
    ]
)


class _TableWriter:
    """Appends rows to a Parquet file, a row group per `chunk_rows`."""

    def __init__(self, path: Path, schema: pa.Schema, chunk_rows: int) -> None:
        self._schema = schema
        self._chunk_rows = chunk_rows
        self._rows: list[tuple[Any, ...]] = []
        self._writer = pq.ParquetWriter(path, schema)

    def append(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= self._chunk_rows:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(self._schema)
        arrays = [_column(values, field) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()


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


class RecordWriter:
    """Writes a run record; a context manager that leaves valid files whatever happens inside.

    Args:
        folder: made if it is not there; files of an earlier record in it are replaced.
        config: the resolved configuration.
        chunk_rows: rows held in memory per table.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], chunk_rows: int = 65_536) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)
        (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=True))
        self._requests = _TableWriter(folder / REQUESTS, REQUEST_SCHEMA, chunk_rows)
        self._instances = _TableWriter(folder / INSTANCES, INSTANCE_SCHEMA, chunk_rows)
        self.request = self._requests.append
        """Append a `RequestRow`."""
        self.instance = self._instances.append
        """Append an `InstanceRow`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._instances.close()

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Write summary.json; the last thing written, so its presence marks a record as finished."""
        temporary = self.folder / (SUMMARY + ".part")
        temporary.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n")
        temporary.replace(self.folder / SUMMARY)


@dataclass(frozen=True)
class RunRecord:
    """A finished run record, read lazily."""

    folder: Path

    def __post_init__(self) -> None:
        missing = [name for name in (CONFIG, SUMMARY, REQUESTS, INSTANCES) if not (self.folder / name).is_file()]
        if missing:
            raise UserError(f"{self.folder}: not a finished run record, missing {', '.join(missing)}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        loaded = _parse(self.folder / CONFIG, yaml.safe_load)
        return dict(loaded)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The numbers of the run."""
        loaded = _parse(self.folder / SUMMARY, json.loads)
        return dict(loaded)

    @property
    def interrupted(self) -> bool:
        """Whether the run was cut short."""
        return bool(self.summary.get("interrupted", False))

    def requests(self) -> pd.DataFrame:
        """One row a request, columns as `RequestRow`, in order of arrival."""
        return _read(self.folder / REQUESTS).sort_values("request_id", ignore_index=True)

    def instances(self) -> pd.DataFrame:
        """One row per change of state, columns as `InstanceRow`, in order of instance and time."""
        return _read(self.folder / INSTANCES).sort_values(["instance", "time_s"], kind="stable", ignore_index=True)


def _parse(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        loaded = parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: found {type(loaded).__name__}, allowed: a mapping")
    return loaded


def _read(path: Path) -> pd.DataFrame:
    with _readable(path):
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    for name in frame.columns[frame.dtypes == "category"]:
        frame[name] = frame[name].astype(object)
    return frame


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def find_records(folders: Sequence[str | Path]) -> list[RunRecord]:
    """Every finished run record in or below the folders, in the order of their paths (numbered folders by number).

    Raises:
        UserError: a folder is missing or holds no finished record.
    """
    records: dict[Path, RunRecord] = {}
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; allowed: a folder that holds run records")
        found = sorted({path.parent for path in folder.rglob(SUMMARY)}, key=_numbered)
        if not found:
            raise UserError(f"{folder}: holds no finished run record ({SUMMARY})")
        records |= {path.resolve(): RunRecord(path) for path in found}
    return list(records.values())


def _numbered(path: Path) -> tuple[tuple[bool, int, str], ...]:
    return tuple(_order(part) for part in path.parts)


def _order(part: str) -> tuple[bool, int, str]:
    return (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)


def iterate(record: RunRecord, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream the named columns of a table (`REQUESTS` or `INSTANCES`) without loading it whole."""
    path = record.folder / table
    with _readable(path), pq.ParquetFile(path) as file:
        yield from file.iter_batches(columns=list(columns))

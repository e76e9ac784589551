"""Reads run records, finished ones and what was left of those that are not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from voltana.errors import UserError
from voltana.files import PART, parse_yaml
from voltana.record.schema import (
    CONFIG,
    INSTANCE_SCHEMA,
    INSTANCES,
    JOURNALS,
    PROVENANCE,
    REQUEST_SCHEMA,
    REQUESTS,
    SUMMARY,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunRecord:
    """A run record, read lazily.

    Args:
        folder: of the record.
        unfinished: whether one without a summary will do: its tables are what is left, perhaps nothing.

    Raises:
        UserError: there is no such record.
    """

    folder: Path
    unfinished: bool = False

    def __post_init__(self) -> None:
        needed = (CONFIG,) if self.unfinished else (CONFIG, SUMMARY, REQUESTS, INSTANCES)
        missing = [name for name in needed if not (self.folder / name).is_file()]
        if missing:
            what = "run record" if self.unfinished else "finished run record"
            raise UserError(f"{self.folder}: not a {what}, missing {missing[0]}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        loaded = _parse(self.folder / CONFIG, parse_yaml)
        return dict(loaded)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The numbers of the run; of an unfinished one, only that it was interrupted."""
        if self.unfinished:
            return {"source": self.provenance.get("source"), "interrupted": True}
        loaded = _parse(self.folder / SUMMARY, json.loads)
        return dict(loaded)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What made the record (`voltana.record.provenance`); empty in records that do not say."""
        path = self.folder / PROVENANCE
        return dict(_parse(path, json.loads)) if path.is_file() else {}

    @property
    def interrupted(self) -> bool:
        """Whether the run was cut short."""
        return bool(self.summary.get("interrupted", False))

    def is_whole(self) -> bool:
        """Whether both tables can be read, as far as their ends tell."""
        try:
            return all(pq.read_metadata(self.folder / name) is not None for name in (REQUESTS, INSTANCES))
        except (pa.ArrowException, OSError):
            return False

    def requests(self) -> pd.DataFrame:
        """One row a request, columns as `RequestRow`, in order of arrival."""
        return self._table(REQUESTS, REQUEST_SCHEMA).sort_values("request_id", ignore_index=True)

    def instances(self) -> pd.DataFrame:
        """One row per change of state, columns as `InstanceRow`, in order of instance and time."""
        table = self._table(INSTANCES, INSTANCE_SCHEMA)
        return table.sort_values(["instance", "time_s"], kind="stable", ignore_index=True)

    def _table(self, name: str, schema: pa.Schema) -> pd.DataFrame:
        if not self.unfinished:
            return _read(self.folder / name)
        for whole in (self.folder / name, self.folder / (name + PART)):  # cut off in its last steps
            try:
                return _read(whole)
            except UserError:
                continue
        return _plain(_salvage(self.folder / JOURNALS[name], schema).to_pandas())


def _parse(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        loaded = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: found {type(loaded).__name__}, allowed: a mapping")
    return loaded


def _read(path: Path) -> pd.DataFrame:
    with _readable(path):
        return _plain(pq.read_table(path).to_pandas())


def _salvage(journal: Path, schema: pa.Schema) -> pa.Table:
    """The rows of a journal up to where it was cut."""
    batches: list[pa.RecordBatch] = []
    try:
        with journal.open("rb") as file, pa.ipc.open_stream(file) as stream:
            batches.extend(stream)
    except (pa.ArrowException, OSError):
        pass
    return pa.Table.from_batches(batches, schema)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    for name in frame.columns[frame.dtypes == "category"]:
        frame[name] = frame[name].astype(object)
    return frame


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted keys: what is no mapping, by where it stands."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def find_records(folders: Sequence[str | Path], *, or_none: bool = False) -> list[RunRecord]:
    """Every finished run record in or below the folders, in the order of their paths (numbered folders by number).

    Args:
        folders: where to look.
        or_none: whether a folder without one will do.

    Raises:
        UserError: a folder is missing or holds no record, or none of them holds a finished one.
    """
    records: dict[Path, RunRecord] = {}
    lacking: list[str] = []
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; allowed: a folder that holds run records")
        found = sorted({path.parent for path in folder.rglob(SUMMARY)}, key=_numbered)
        if not found and not or_none:
            cut = find_unfinished([folder])
            lacking.append(f"{folder}: holds no finished run record ({SUMMARY})")
            if not cut:
                raise UserError(lacking[-1])
            lacking[-1] += f"; {cut[0].folder} is unfinished"
        records |= {path.resolve(): RunRecord(path) for path in found}
    if lacking and not records:
        raise UserError(lacking[0])
    return list(records.values())


def find_unfinished(folders: Sequence[str | Path]) -> list[RunRecord]:
    """Every record in or below the folders whose run did not end: it goes on, was killed, or failed."""
    found = {
        path.parent.resolve(): RunRecord(path.parent, unfinished=True)
        for name in folders
        for path in sorted(Path(name).rglob(CONFIG), key=_numbered)
        if (path.parent / PROVENANCE).is_file() and not (path.parent / SUMMARY).is_file()
    }
    return list(found.values())


def _numbered(path: Path) -> tuple[tuple[bool, int, str], ...]:
    return tuple(_order(part) for part in path.parts)


def _order(part: str) -> tuple[bool, int, str]:
    return (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)


def iterate(record: RunRecord, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Stream the named columns of a table (`REQUESTS` or `INSTANCES`) without loading it whole."""
    path = record.folder / table
    with _readable(path), pq.ParquetFile(path) as file:
        yield from file.iter_batches(columns=list(columns))

"""Writes a run record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from voltana.errors import UserError
from voltana.files import PART, write_whole, writing, yaml_text
from voltana.record.claim import Claim, claim
from voltana.record.schema import (
    CONFIG,
    INSTANCE_SCHEMA,
    INSTANCES,
    JOURNALS,
    LOG,
    PROVENANCE,
    REQUEST_SCHEMA,
    REQUESTS,
    SUMMARY,
)
from voltana.record.tables import TableWriter


class RecordWriter:
    """Writes a run record; a context manager.

    At its end the record is finished if `summary` was called; else it stays unfinished, with the rows so far.

    Args:
        folder: made if it is not there; files of an earlier record in it are replaced.
        config: the resolved configuration.
        provenance: what made the record (`voltana.record.provenance`).
        claimed: the claim under which it is written; None: one of its own, which keeps a finished record of another
            configuration.
        chunk_rows: rows held in memory per table.

    Raises:
        UserError: as `claim`, or something cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        provenance: Mapping[str, Any] | None = None,
        claimed: Claim | None = None,
        chunk_rows: int = 65_536,
    ) -> None:
        self.folder = folder
        self._summary: str | None = None
        with ExitStack() as stack:
            if claimed is None:
                stack.enter_context(claim(folder, config))
            self._clear()
            _write(folder / CONFIG, yaml_text(dict(config)))
            _write(folder / PROVENANCE, json.dumps(dict(provenance or {}), indent=2) + "\n")
            self._tables = (
                TableWriter(folder / REQUESTS, REQUEST_SCHEMA, chunk_rows),
                TableWriter(folder / INSTANCES, INSTANCE_SCHEMA, chunk_rows),
            )
            self._claim = stack.pop_all()
        self.request, self.instance = (table.append for table in self._tables)
        """Append a `RequestRow`; an `InstanceRow`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._claim:
            if self._summary is None:
                self._abandon(failed=exception[0] is not None)
            else:
                self._finish(self._summary)

    def keep(self) -> None:
        """Put all rows so far where they survive the process; rows do so themselves while others follow."""
        for table in self._tables:
            table.keep()

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Take the numbers of the run, which is over."""
        self._summary = json.dumps(numbers, indent=2, allow_nan=False) + "\n"

    def _clear(self) -> None:
        """Remove an earlier record, the summary first, so that nothing finished is ever mixed."""
        with writing(self.folder):
            for name in (SUMMARY, REQUESTS, INSTANCES, PROVENANCE, LOG, *JOURNALS.values()):
                for each in (name, name + PART):
                    (self.folder / each).unlink(missing_ok=True)

    def _finish(self, summary: str) -> None:
        try:
            for table in self._tables:
                table.finish()
            with writing(self.folder):
                for table in self._tables:
                    table.publish()
                _sync_folder(self.folder)
        except UserError:
            self._abandon(failed=True)
            raise
        write_whole(self.folder / SUMMARY, summary)
        for table in self._tables:
            table.remove_journal()

    def _abandon(self, failed: bool) -> None:
        for table in self._tables:
            with suppress(*((UserError, OSError) if failed else ())):
                table.abandon()


def replace_summary(folder: Path, numbers: Mapping[str, Any]) -> None:
    """Write the summary of a finished record anew.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(folder / SUMMARY, json.dumps(numbers, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

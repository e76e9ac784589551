"""One folder, one run: who writes a record holds its folder, and a finished record of something else is kept."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from voltana.errors import TakenError, UserError
from voltana.files import writing
from voltana.record.reader import RunRecord, flatten
from voltana.record.schema import CONFIG, LOCK


@dataclass(frozen=True)
class Claim:
    """The right to write a folder, as long as the process lives or until `release`."""

    folder: Path
    _file: IO[str]

    def release(self) -> None:
        """Let the next one write."""
        if not self._file.closed:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._file.close()


@contextmanager
def claim(folder: Path, config: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Claim]:
    """Hold a folder for a run of a configuration.

    Args:
        folder: made if it is not there.
        config: of the run.
        overwrite: whether a finished record of another configuration may be replaced.

    Raises:
        TakenError: another process is writing there, or it holds a finished record of another configuration.
        UserError: it cannot be written.
    """
    held = Claim(folder, _lock(folder))
    try:
        if not overwrite:
            refuse_another(folder, config)
        yield held
    finally:
        held.release()


def holder(folder: Path) -> str | None:
    """Who is writing a folder, in words; None if nobody is."""
    try:
        with (folder / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _describe(file.read())
    except OSError:
        return None
    return None


def _lock(folder: Path) -> IO[str]:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = (folder / LOCK).open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = _describe(file.read())
                file.close()
                raise TakenError(
                    f"{folder}: {who} is writing its record there; allowed: a folder for each run"
                ) from None
            if _is_at(file, folder / LOCK):
                break
            file.close()
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}))
        file.flush()
    return file


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether a file is still the one of that name: its holder removes it when it is done."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _describe(text: str) -> str:
    try:
        about = json.loads(text)
        return f"process {about['pid']} on {about['host']} (since {about['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def refuse_another(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that holds the finished record of another configuration.

    Raises:
        TakenError: it does.
    """
    try:
        found = RunRecord(folder)
        if found.interrupted or not (different := differing(found.config, config)):
            return
    except UserError:  # nothing finished is there
        return
    sweep = found.provenance.get("sweep")
    of = f" of the sweep {' '.join(sweep['overrides'])}" if sweep else ""
    raise TakenError(
        f"{folder / CONFIG}: found the finished record of another run{of} ({different}); "
        "allowed: another folder, or overwrite=true"
    )


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first keys in which two configurations differ, in words; empty if they are the same."""
    flat_found, flat_wanted = flatten(found), flatten(wanted)
    keys = [key for key in {**flat_wanted, **flat_found} if flat_found.get(key, _NONE) != flat_wanted.get(key, _NONE)]
    named = [key for key in keys if key.removesuffix(".name") in _TELLING] or keys
    words = [f"{key.removesuffix('.name')}={flat_found.get(key, 'unset')}" for key in named[:3]]
    return ", ".join(words) + (", ..." if len(named) > 3 else "")


_NONE = object()
_TELLING = ("policy", "model", "trace", "gpu", "cluster", "slo", "rps", "duration_s", "seed")

"""Writing files so that a full disk or a crash is told, and leaves nothing that looks whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from voltana.errors import UserError

PART = ".part"
"""Ends the name of a file that is not whole yet."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a failure to write as bad input: the file and what the system said.

    Raises:
        UserError: the disk is full, the folder cannot be written, ...
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise UserError(f"{path}: {reason}") from error


def on_disk(file: IO[Any]) -> None:
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, wait until it is on the disk, then give it its name.

    A device or pipe, such as /dev/stdout, is written as it is. Folders are made.

    Raises:
        UserError: it cannot be written; what was there before still is.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        target = path.resolve()
        temporary = target.with_name(f".{target.name}.{os.getpid()}{PART}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                on_disk(file)
            temporary.replace(target)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

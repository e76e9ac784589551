"""Writing files so that a full disk or a crash is told, and leaves nothing that looks whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from voltana.errors import UserError

PART = ".part"
"""Ends the name of a file that is not whole yet."""


def cache_folder() -> Path:
    """The user's cache folder of this project."""
    from platformdirs import user_cache_path

    return user_cache_path("voltana")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, by libyaml where PyYAML has it: ten times faster, to the same result.

    Raises:
        yaml.YAMLError: it is none.
    """
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def yaml_text(values: Any) -> str:
    """A value as YAML, keys in alphabetical order; by libyaml where PyYAML has it, to the same text."""
    import yaml

    return str(yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=True))


def read_json_object(path: Path, allowed: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        allowed: what it should be, for the error.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"{path}: {reason}; allowed: {allowed}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {type(found).__name__}, allowed: {allowed}")
    return found


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

"""Finished cells on disk, one line each as they come, so that an interrupted profile goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from voltana.errors import UserError

Measured = TypeVar("Measured")


class Journal(Generic[Measured]):
    """The cells of one profile.

    Args:
        path: of the file; made with the first cell.
        about: what all its cells have in common: GPU, model, software, settings that change a measurement.
        kind: the dataclass that a finished cell is.

    Raises:
        UserError: the file holds cells of something else, or is damaged.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], kind: type[Measured]) -> None:
        self._path = path
        self._kind = kind
        self._about = about
        self.cells: list[Measured] = []
        if path.exists():
            self._read(path, dict(about))

    def add(self, measured: Measured) -> None:
        """Keep a finished cell."""
        lines = [asdict(measured)]  # type: ignore[call-overload]
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"about": dict(self._about)})
        with self._path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.cells.append(measured)

    def _read(self, path: Path, about: dict[str, Any]) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # cut off while it was written
            path.write_text("".join(whole), encoding="utf-8")
        try:
            first, *rest = [json.loads(line) for line in whole]
            found = first["about"]
            self.cells = [self._kind(**line) for line in rest]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no journal of a profile ({error}); remove it, or give another out=") from error
        wanted = json.loads(json.dumps(about))
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other:
            raise UserError(
                f"{path}: holds cells of another profile ({other[0]} was {found.get(other[0])!r}, is "
                f"{wanted[other[0]]!r}); remove it, or give another out="
            )

"""What Hydra composed before, kept in the user's cache folder: composing takes 0.3 s, reading a thousandth of it.

A composition is found by the words that it was made from and the content of all that makes it: every file of the
configuration folders, the resolvers, Hydra and its plugins. So where a file has changed nothing is found, and nothing
ever has to be cleared. A cache that cannot be read or written is none.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from voltana.files import cache_folder

MOST = 20_000
"""So many are kept, of some kilobytes each; the oldest go."""
_TABLE = "CREATE TABLE IF NOT EXISTS composed (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, value TEXT)"


class KeptCompositions:
    """Plain values by the words that they were composed from.

    Args:
        folders: of configuration files, in Hydra's order.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._new: dict[str, str] = {}

    def find(self, *words: str) -> dict[str, Any] | None:
        """What was kept under these words; None if nothing was."""
        with suppress(sqlite3.Error):
            for (text,) in self._file.execute("SELECT value FROM composed WHERE key = ?", [self._key(words)]):
                return dict(json.loads(text))
        return None

    def keep(self, composed: Mapping[str, Any], *words: str) -> None:
        """Keep what was composed, to be found after `save`; nothing that would not come back as it is."""
        text = json.dumps(composed)
        if json.loads(text) == composed:
            self._new[self._key(words)] = text

    def save(self) -> None:
        """Put on disk what was kept."""
        with suppress(sqlite3.Error), self._file as file:
            file.executemany("INSERT OR REPLACE INTO composed (key, value) VALUES (?, ?)", self._new.items())
            file.execute("DELETE FROM composed WHERE id <= (SELECT max(id) FROM composed) - ?", [MOST])
        self._new.clear()

    @cached_property
    def _file(self) -> sqlite3.Connection:
        """The cache on disk; where there can be none, one that is empty and stays so."""
        path = cache_folder() / "composed.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _opened(path)
        except (OSError, sqlite3.Error) as error:
            if type(error) is sqlite3.DatabaseError:  # it is damaged: the next one starts anew
                path.unlink()
            return _opened(":memory:")

    def _key(self, words: tuple[str, ...]) -> str:
        digest = hashlib.sha256(self._composer)
        digest.update(json.dumps(words).encode())
        return digest.hexdigest()

    @cached_property
    def _composer(self) -> bytes:
        """The hash of all that makes compositions of words."""
        digest = hashlib.sha256()
        for part in (*_code(), *(each for folder in self._folders for each in _content(folder))):
            digest.update(hashlib.sha256(part).digest())
        return digest.digest()


def _opened(path: Path | str) -> sqlite3.Connection:
    opened = sqlite3.connect(path)
    opened.execute(_TABLE)
    return opened


def _code() -> Iterator[bytes]:
    for name in ("resolve.py", "counts.py"):
        yield Path(__file__).with_name(name).read_bytes()
    for package, file in (("hydra", "__init__.py"), ("omegaconf", "version.py")):  # which name their versions
        spec = find_spec(package)
        yield b"" if spec is None else Path(str(spec.origin)).with_name(file).read_bytes()
    for folder in sys.path:
        yield from (str(path).encode() for path in sorted(Path(folder).glob("hydra_plugins/*")))


def _content(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*.y*ml")):
        yield str(path.relative_to(folder)).encode()
        yield path.read_bytes()


def folders_of(sources: Sequence[Mapping[str, str]]) -> list[Path] | None:
    """The folders of configuration files among Hydra's sources (`hydra.runtime.config_sources`).

    Returns:
        The folders beside Hydra's own; None if there is a source whose content is not seen here.
    """
    folders = []
    for source in sources:
        match source["provider"], source["schema"]:
            case "hydra", _:
                pass
            case "main", "pkg":
                folders += [Path(each) for each in getattr(find_spec(source["path"]), "submodule_search_locations", ())]
            case "main" | "command-line", "file":
                folders.append(Path(source["path"]))
            case _, "structured" | "counts":
                pass
            case _:
                return None
    return folders


def split_own_folders(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """A command line's own configuration folders, as far as they are there, and its other words."""
    if not any(word.startswith("-") for word in words):
        return [], list(words)
    from argparse import ArgumentParser

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    known, others = parser.parse_known_args(words)
    return [folder for folder in known.config_dir if folder.is_dir()], others

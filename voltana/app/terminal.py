"""What people read on a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def take_any_text() -> None:
    """Let standard output and error show a question mark for what the encoding of the terminal lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def plain_console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console that shows text as it is: brackets, colons and numbers in it mean nothing.

    Args:
        stderr: to standard error instead of standard output.
        width: columns; None: those of the terminal.
        soft_wrap: whether long lines are left to the terminal to break.
    """
    from rich.console import Console

    return Console(stderr=stderr, width=width, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


def short(path: Path) -> Path:
    """A path as it is typed from the current folder, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

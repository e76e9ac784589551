"""What people read on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that shows text as it is: brackets, colons and numbers in it mean nothing.

    Args:
        stderr: to standard error instead of standard output.
        width: columns; None: those of the terminal.
    """
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

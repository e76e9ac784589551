"""The console script `voltana-clocks`: its options, which need nothing beyond the base installation to be shown.

Exit status: 0 done, 2 bad input or no privilege, 3 a GPU could not be restored.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from voltana.app.extras import require
from voltana.compiled import version
from voltana.errors import UserError
from voltana.live.clocks import access
from voltana.live.clocks.access import PROGRAM
from voltana.live.clocks.limits import Limits


def main(arguments: Sequence[str] | None = None) -> None:
    """Run an owner until a signal, or do what `--restore` asks, and exit."""
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = _parser().parse_args(arguments)
        require(PROGRAM, "live")
        from voltana.live.clocks.owner import run

        status = run(options)
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        status = 2
    sys.stderr.flush()
    os._exit(status)  # a driver call that never returns would keep the interpreter from ending


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROGRAM, description="Own the clocks and power caps of GPUs on behalf of unprivileged clients.")
    add = parser.add_argument
    add("--version", action="version", version=f"%(prog)s {version()}")
    add("--gpus", type=_gpus, help="indices or UUIDs of the GPUs to own, such as 0,1,2,3; no other is ever changed")
    add("--group", help="members of this group may connect, beside root and the user who starts it")
    add("--folder", type=Path, help=f"for socket, lock and note of changes; root's standard is {access.ROOT_FOLDER}")
    add("--observe", action="store_true", help="only read: needs no privilege")
    add("--restore", action="store_true", help="undo what an owner that was killed has left, and exit")
    add(
        "--stop-on-eof",
        action="store_true",
        help="stop when standard input ends, that is with the process that started it, and remove an empty --folder",
    )
    add("--changes-per-s", type=_number(1, 1000), default=Limits.changes_per_s, help="per GPU; default %(default)s")
    add("--heartbeat-s", type=_number(0.1, 3600), default=Limits.heartbeat_s, help="default %(default)s")
    add("--restore-s", type=_number(0.1, 600), default=Limits.restore_s, help="at exit, at most; default %(default)s")
    add("--simulate", type=Path, metavar="JSON", help="simulated GPUs: their settings")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _gpus(text: str) -> list[int | str]:
    words = [int(word) if word.isdecimal() else word for word in text.split(",")]
    if not all(isinstance(word, int) or word.startswith("GPU-") for word in words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: indices such as 0,1,2,3, or UUIDs, each once")
    return words


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text}; allowed: {low:g} to {high:g}")
        return value

    return number


if __name__ == "__main__":
    main()

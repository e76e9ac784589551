"""Runs a program and sees that nothing of it outlives its owner: ``python guard.py [--remove FILE] -- PROGRAM ...``.

The owner holds the other end of standard input. When that ends, even because the owner was killed, or on SIGTERM, the
program gets SIGTERM, some time to stop, and SIGKILL with all its children; then FILE goes, and the folder it was in
if that is empty. When the program ends by itself the same happens to what it left. If the guard itself is killed, the
kernel kills the program. The program's process id is printed, and its exit status is the guard's.

Only the standard library is used: one of these runs beside every server.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run a program to its end or ours; return its exit status, as a shell does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace-s", type=float, default=20.0, help="time between SIGTERM and SIGKILL")
    parser.add_argument("--remove", type=Path, help="file to remove at the end")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    child = _start(options.program)
    try:
        print(child.pid, flush=True)
        ended = os.pidfd_open(child.pid)
        readable, _, _ = select.select([0, wake, ended], [], [])
        if ended not in readable:
            _signal_group(child.pid, signal.SIGTERM, only_leader=True)
            _signal_group(child.pid, signal.SIGCONT)
            select.select([ended], [], [], options.grace_s)
    finally:
        _signal_group(child.pid, signal.SIGKILL)
        status = child.wait()
        if options.remove is not None:
            _remove(options.remove)
    return status if status >= 0 else 128 - status


def _start(program: list[str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def die_with_the_guard() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        program,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        process_group=0,
        preexec_fn=die_with_the_guard,
    )


def _signal_group(leader: int, number: signal.Signals, *, only_leader: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, number) if only_leader else os.killpg(leader, number)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())

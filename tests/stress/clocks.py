"""`python -m tests.stress.clocks`: whatever is done to it, the owner of clocks leaves no GPU locked.

Random lines and mutated requests at its socket; clients, owners and whole live runs with their servers killed and
stopped (SIGKILL, SIGSTOP) while clocks are locked; a driver that fails at random. The GPUs are those of the stand-in
for NVIDIA's library (`tests/live/clocks/nvml_standin.c`), so that what is locked is seen from outside. It prints a row
for each, and ends with status 1 if a GPU stayed locked, a good request went unanswered or an owner died.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.live.clocks.conftest import StandIn, compile_standin
from tests.live.run.conftest import Started, servers_of
from voltana.live.clocks.access import SOCKET_NAME
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.protocol import Applied, Event

HEARTBEAT_S = 3.0
WITHIN_S = 60.0
"""By then every lock is undone, on however busy a machine."""
HELLO = {"op": "hello", "id": 0, "protocol": 1, "name": "stress"}
GOOD: tuple[dict[str, Any], ...] = (
    {"op": "ping", "id": 1},
    {"op": "own", "id": 2, "group": "a", "gpus": [0]},
    {"op": "own", "id": 3, "group": "b", "gpus": [1, 2]},
    {"op": "clock", "id": 4, "group": "a", "mhz": 1005},
    {"op": "clock", "id": 5, "group": "b", "mhz": 600},
    {"op": "power", "id": 6, "group": "a", "watts": 250.0},
    {"op": "read", "id": 7, "gpus": [0, 1, 2, 3]},
    {"op": "watch", "id": 8, "gpus": [3]},
    {"op": "release", "id": 9, "group": "b"},
    {"op": "feed", "id": 10, "gpus": [0], "phase": "idle"},
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3.5, 2**63, 1e400),
    *("", "a", "x" * 200, "\n", "\x1b[2J", [], [0, 0], [9], {}),
)
BYTES = b'\x00\r\n {}[]",:\\\xff9'


class Owner:
    """An owner of the stand-in's GPUs, as a supervisor keeps it: started again when it has died.

    Args:
        folder: its own, with the state of the GPUs.
        library: folder of the stand-in.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder, self.socket = folder, folder / SOCKET_NAME
        self.gpus = StandIn(folder / "gpus", library)
        self._log = (folder / "log").open("w")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.socket.unlink(missing_ok=True)
        options = ["--gpus", "0,1,2,3", "--folder", str(self.folder), "--heartbeat-s", str(HEARTBEAT_S)]
        command = [sys.executable, "-P", "-m", "voltana.live.clocks.command", *options]
        process = subprocess.Popen(command, env=self.gpus.environment, stdout=self._log, stderr=self._log)
        assert until(lambda: self.socket.exists() or process.poll() is not None), "the owner does not start"
        return process

    def revive(self) -> None:
        """End it for good, whatever was done to it, and start the next."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
        self.process.wait()
        self.process = self._start()

    def unlocked(self) -> bool:
        """Whether no GPU is locked or capped any more, in time."""
        return until(
            lambda: self.gpus.locked() == [0] * 4 and all(self.gpus.get(n, "limit_mw") == 400_000 for n in range(4))
        )

    def locked(self) -> int:
        """How many GPUs are."""
        return sum(map(bool, self.gpus.locked()))

    def works(self) -> bool:
        """Whether a client gets a GPU, a clock and its word that it is in force."""
        applied: list[Event] = []
        try:
            with ClockClient(self.socket, "good", applied.append) as clocks:
                clocks.own("good", [3])
                clocks.set_clock("good", 1200)
                return until(lambda: any(isinstance(event, Applied) for event in applied))
        except (ClockError, OSError):
            return False

    def stop(self) -> bool:
        """End it as an administrator does; whether it restored all."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(WITHIN_S) == 0 and self.unlocked()


class Report:
    """Rows of what was tried and what came of it."""

    def __init__(self) -> None:
        self.bad = 0
        print("| what | inputs | faults | came of it | lost | left locked |\n|---|---:|---:|---|---:|---:|", flush=True)

    def row(self, what: str, inputs: int, faults: int, came: Counter[str], lost: int, locked: int) -> None:
        """Print one, and keep whether it was good."""
        told = ", ".join(f"{number} x {name}" for name, number in sorted(came.items()))
        print(f"| {what} | {inputs} | {faults} | {told} | {lost} | {locked} |", flush=True)
        self.bad += lost + locked


def until(condition: Callable[[], object]) -> bool:
    """Wait for something that another process does; whether it came in time."""
    end_s = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.005)
    return True


def line(draw: random.Random) -> bytes:
    """Random bytes, random JSON, or a good request that is changed a little."""
    kind = draw.random()
    if kind < 0.1:
        return draw.randbytes(draw.randint(0, 200)).replace(b"\n", b"")
    request = dict(draw.choice(GOOD))
    if kind < 0.7:
        for _ in range(draw.randint(0, 2)):
            request[draw.choice([*request, "extra"])] = draw.choice(VALUES)
    raw = bytearray(json.dumps(request).encode())
    if kind >= 0.7:
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(raw))
            raw[at : at + draw.randint(0, 3)] = bytes([draw.choice(BYTES)]) * draw.randint(0, 2)
    return bytes(raw).replace(b"\n", b"") if draw.random() < 0.99 else b"[" * draw.choice((5000, 70_000))


def fuzz(report: Report, owner: Owner, options: argparse.Namespace, draw: random.Random) -> None:
    """Connections of fifty lines each; a good client after every tenth."""
    came, lost, sent = Counter[str](), 0, 0
    while sent < options.lines:
        batch = [line(draw) for _ in range(50)]
        sent += len(batch)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WITHIN_S)
            connection.connect(str(owner.socket))
            with suppress(OSError):  # it hung up
                greeting = json.dumps(HELLO).encode() + b"\n" if draw.random() < 0.9 else b""
                connection.sendall(greeting + b"\n".join(batch) + b"\n")
                connection.shutdown(socket.SHUT_WR)
            answers = b""
            with suppress(OSError):
                while chunk := connection.recv(1 << 16):
                    answers += chunk
        for answer in answers.splitlines():
            told = json.loads(answer)
            kind = told["code"] if told["is"] == "refused" else told["is"]
            came["hung up" if kind == "lost" else kind] += 1
        if sent % 500 == 0:
            lost += not owner.works()
    lost += owner.process.poll() is not None
    report.row("random lines, mutated requests", sent, 0, came, lost, 0 if owner.unlocked() else owner.locked())


def holder(path: str, number: int, ready: Any) -> None:
    """A client in a process of its own: locks a GPU, and changes its clock until it is ended."""

    def on_event(event: Event) -> None:
        if isinstance(event, Applied):
            ready.set()

    clocks = ClockClient(Path(path), f"holder {number}", on_event)
    with suppress(ClockError):
        clocks.own("held", [number])
        for turn in range(10**9):
            clocks.set_clock("held", (1005, 600)[turn % 2])
            clocks.set_power_cap("held", (250.0, None)[turn % 2])
            time.sleep(0.2)
    os._exit(0)


@contextmanager
def holders(owner: Owner) -> Iterator[list[Any]]:
    """Clients that hold GPUs 0 and 1, which are locked."""
    context = multiprocessing.get_context("fork")
    ready = [context.Event() for _ in range(2)]
    clients = [context.Process(target=holder, args=(str(owner.socket), n, ready[n]), daemon=True) for n in range(2)]
    for client in clients:
        client.start()
    for each in ready:
        each.wait(WITHIN_S)
    try:
        yield clients
    finally:
        for client in clients:
            client.kill()
            client.join()


def kills(report: Report, owner: Owner, options: argparse.Namespace, draw: random.Random) -> None:
    """A client or the owner is killed or stopped while GPUs are locked."""
    for victim in ("client", "owner"):
        came, lost, left = Counter[str](), 0, 0
        for _ in range(options.kills):
            number = draw.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
            with holders(owner) as clients:
                came["locked before"] += owner.locked()
                if victim == "client":
                    os.kill(clients[0].pid, number)
                    if not until(lambda: owner.gpus.locked()[0] == 0):
                        left += 1
                else:
                    owner.process.send_signal(number)
                    if number == signal.SIGTERM:
                        lost += owner.process.wait(WITHIN_S) != 0
                came[number.name] += 1
            if victim == "owner":
                owner.revive()
            left += 0 if owner.unlocked() else owner.locked()
        lost += not owner.works()
        report.row(f"the {victim} killed or stopped", 0, options.kills, came, lost, left)


def driver(report: Report, owner: Owner, options: argparse.Namespace, draw: random.Random) -> None:
    """Driver calls fail or take long, and something else changes the GPUs, while clients command."""
    came, gpus = Counter[str](), owner.gpus
    with holders(owner):
        for _ in range(options.kills * 4):
            gpu = draw.randrange(2)
            match draw.randrange(4):
                case 0:
                    gpus.set(gpu, "fault_change", draw.choice((4, 15, 999)))
                    came["error of a call"] += 1
                case 1:
                    gpus.set(gpu, "fault_reset", 999)
                    came["error of a reset"] += 1
                case 2:
                    gpus.set(gpu, "delay_ms", draw.choice((5, 50, 300)))
                    came["slow call"] += 1
                case _:
                    gpus.set(gpu, "locked_mhz", 0)
                    came["reset by somebody else"] += 1
            time.sleep(draw.uniform(0.0, 0.3))
            for each in range(2):
                for field in ("fault_change", "fault_reset", "delay_ms"):
                    gpus.set(each, field, 0)
        lost = not until(lambda: all(gpus.locked()[:2]))  # what is commanded is in force again
    left = 0 if owner.unlocked() else owner.locked()
    report.row("a driver that fails", 0, options.kills * 4, came, lost + (owner.process.poll() is not None), left)


def runs(report: Report, owner: Owner, options: argparse.Namespace) -> None:
    """Whole live runs that drive the GPUs: their harness, client or a server is killed or stopped."""
    came, lost, left = Counter[str](), 0, 0
    place = owner.folder / "runs"
    os.environ |= {name: owner.gpus.environment[name] for name in ("LD_LIBRARY_PATH", "NVML_STANDIN_STATE")}
    victims = {"harness": "", "client": "voltana.live.run.load", "server": "voltana.live.servers.emulated --config"}
    for turn in range(options.runs):
        for victim, pattern in victims.items():
            for number in (signal.SIGKILL, signal.SIGSTOP):
                here = place / f"{turn}-{victim}-{number.name}"
                host, run = _run(here / "host"), None
                try:
                    host.says("of 600 s:")
                    run = _run(here / "run", *servers_of(host), "control=nvml", f"control.socket={owner.socket}")
                    run.says("of 600 s:")
                    lost += not until(lambda: owner.locked() == 4)
                    came["locked before"] += owner.locked()
                    pids = [
                        pid
                        for pid, command in (host if victim == "server" else run).children.items()
                        if pattern in command
                    ]
                    os.kill(pids[0] if pattern else run.pid, number)
                    if number == signal.SIGSTOP and victim == "harness":
                        lost += not owner.unlocked()  # by the owner: nothing was heard from it
                    elif victim == "server":
                        run.signal(signal.SIGTERM)
                        lost += run.end(WITHIN_S * 3).status not in (3, 130)
                    else:
                        lost += run.end(WITHIN_S * 3).status not in (3, -signal.SIGKILL)
                finally:
                    for each in (run, host):
                        if each is not None:
                            each.kill()
                came[f"{victim} {number.name}"] += 1
                left += 0 if owner.unlocked() else owner.locked()
    report.row("live runs, a part killed or stopped", 0, 6 * options.runs, came, lost, left)


def _run(place: Path, *overrides: str) -> Started:
    place.mkdir(parents=True)
    settings = ("policy=static_1005", "rps=5", "duration_s=600", "trace=lognormal", "trace.output_max=150")
    return Started(place, place, (*settings, *overrides))


def main() -> None:
    """Run all, and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.clocks", description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000, help="random and mutated ones")
    parser.add_argument(
        "--kills", type=int, default=20, help="of a client, of the owner; four times as many of a driver"
    )
    parser.add_argument("--runs", type=int, default=1, help="live runs, six kills each")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report, draw = Report(), random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="vs-"))
    owner = Owner(folder, compile_standin(folder))
    try:
        fuzz(report, owner, options, draw)
        kills(report, owner, options, draw)
        driver(report, owner, options, draw)
        runs(report, owner, options)
        report.bad += not owner.stop()
    finally:
        if owner.process.poll() is None:
            owner.process.kill()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if report.bad else 0)


if __name__ == "__main__":
    main()

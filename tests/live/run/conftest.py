"""Live runs against emulated servers, started as a user would."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest

from voltana.live.gpus.energy import metered
from voltana.record import InstanceRow, RunRecord

COMMAND = Path(sys.executable).parent / "voltana-live"
SMALL_PROFILE = (
    "profile.clocks_mhz=[1005,1410]",
    "profile.prefill.samples=4",
    "profile.decode.samples=5",
    "profile.decode.max_batch=32",
)


class Ended(NamedTuple):
    """A run that is over."""

    status: int
    output: str
    folder: Path


class Started:
    """A run under way; its temporary files go to a folder of its own."""

    def __init__(self, place: Path, cache: Path, overrides: tuple[str, ...]) -> None:
        self.folder = place / "record"
        self.temporary = Path(tempfile.mkdtemp(prefix="vt-"))  # short, as the path of a socket must be
        self._log = (place / "log").open("w+")
        environment = {**os.environ, "TMPDIR": str(self.temporary), "XDG_CACHE_HOME": str(cache)}
        self._process = subprocess.Popen(
            [COMMAND, f"hydra.run.dir={self.folder}", *overrides],
            stdout=self._log,
            stderr=self._log,
            cwd=place,
            env=environment,
            start_new_session=True,
        )

    def says(self, text: str, within_s: float = 180.0) -> None:
        """Wait until it has printed a text."""
        until_s = time.monotonic() + within_s
        while text not in self.output:
            assert self._process.poll() is None, self.output
            assert time.monotonic() < until_s, self.output
            time.sleep(0.05)

    @property
    def output(self) -> str:
        """All that it printed."""
        return Path(self._log.name).read_text()

    def goes_on(self, for_s: float) -> None:
        """Let it run for a while."""
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            assert self._process.poll() is None, self.output
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the harness."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def children(self) -> dict[int, str]:
        """Processes that it started, by number, with their command lines."""
        return {pid: command for pid, command in processes().items() if str(self.temporary) in environment_of(pid)}

    def child(self, pattern: str) -> int:
        """The one whose command line looks so."""
        found = [pid for pid, command in self.children.items() if re.search(pattern, command)]
        assert len(found) == 1, self.children
        return found[0]

    def end(self, within_s: float = 300.0) -> Ended:
        """Wait for its end."""
        status = self._process.wait(within_s)
        return Ended(status, self.output, self.folder)

    def nothing_is_left(self, within_s: float = 15.0) -> None:
        """Neither processes nor files, after a moment for those that notice the end of another."""
        until_s = time.monotonic() + within_s
        while (self.children or list(self.temporary.iterdir())) and time.monotonic() < until_s:
            time.sleep(0.05)
        assert not self.children
        assert not list(self.temporary.iterdir())

    def kill(self) -> None:
        """The end of a test."""
        for pid in [*self.children, self._process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._log.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


def processes() -> dict[int, str]:
    """Command lines of all processes."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return {pid: command for pid, command in found.items() if command}


def environment_of(pid: int) -> str:
    """The environment of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def start(tmp_path: Path, cache: Path) -> Iterator[Callable[..., Started]]:
    """Start voltana-live with overrides; small unless they say otherwise."""
    started: list[Started] = []

    def go(*overrides: str) -> Started:
        place = tmp_path / f"run{len(started)}"
        place.mkdir(exist_ok=True)
        short = ("trace=lognormal", "trace.output_max=150")
        settings = ("rps=20", "duration_s=3", "policy=static_max", *short, *SMALL_PROFILE, *overrides)
        started.append(Started(place, cache, settings))
        return started[-1]

    yield go
    for run in started:
        run.kill()


@pytest.fixture
def attach(start: Callable[..., Started]) -> Callable[..., Started]:
    """Start a run that attaches to the servers of another and drives simulated GPUs by their telemetry.

    `owners` names the sockets of owners of clocks, by role, for those whose GPUs are not those of `control`.
    """

    def go(*overrides: str, owners: Mapping[str, Path] | None = None) -> Started:
        host = start("duration_s=120", "rps=1")
        host.says("of 120 s:")
        return start(*servers_of(host, owners), *overrides)

    return go


def servers_of(host: Started, owners: Mapping[str, Path] | None = None) -> list[str]:
    """The settings of a run that attaches to the servers of another; `owners` as in `attach`."""
    folder = next(host.temporary.glob("voltana-emulated-*"))
    servers = {"prefill": list[str](), "decode": list[str]()}
    for role, place in (("prefill", 0), ("prefill", 1), ("decode", 0), ("decode", 1)):
        ports = listening(host.child(f"voltana.live.servers.emulated --config .*{role}-{place}.json"))
        serving = next(port for port in ports if is_healthy(port))
        bootstrap = "".join(f"bootstrap_port: {port}, " for port in ports if port != serving)
        telemetry = f"ipc://{folder / f'{role}-{place}.sock'}"
        owner = f", owner: '{owners[role]}'" if owners and role in owners else ""
        servers[role].append(f"{{url: 'http://127.0.0.1:{serving}', {bootstrap}telemetry: '{telemetry}'{owner}}}")
    return ["servers=attach", *(f"servers.{role}=[{','.join(each)}]" for role, each in servers.items())]


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def listening(pid: int) -> list[int]:
    """TCP ports at which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink()) if link.is_symlink() else ""
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes]


@pytest.fixture
def checked() -> Callable[[Path], RunRecord]:
    return _checked


def _checked(folder: Path) -> RunRecord:
    """A record whose parts agree."""
    record = RunRecord(folder)
    summary, requests, instances = record.summary, record.requests(), record.instances()
    assert summary["source"] == "live"
    assert summary["requests"]["submitted"] == len(requests)
    assert summary["requests"]["completed"] == sum(requests.status == "completed")
    done = requests[requests.status == "completed"]
    assert (done.ttft_s > 0).all() and (done.finish_s >= done.first_token_s).all()
    assert set(done.prefill_instance) <= {"prefill-0", "prefill-1"}
    assert set(done.decode_instance) <= {"decode-0", "decode-1"}
    assert (instances.time_s <= summary["end_s"]).all()
    for name, energy_j in summary["energy_j"]["per_instance"].items():
        rows = rows_of(record, name)
        told = metered(rows, summary["start_s"], summary["end_s"])
        share = summary["live"]["energy_known_share"][name]
        assert told.unknown_s == pytest.approx((1 - share) * summary["duration_s"], abs=1e-6)
        if energy_j is None:
            assert share < 1 and any(note.startswith(name) for note in summary["energy_notes"])
        else:
            assert told.energy_j == pytest.approx(energy_j)
    return record


def rows_of(record: RunRecord, name: str) -> list[InstanceRow]:
    frame = record.instances()
    rows = frame[frame.instance == name].astype(object)
    return [InstanceRow(*row) for row in rows.where(rows.notna(), None).itertuples(index=False)]

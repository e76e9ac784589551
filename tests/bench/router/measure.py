"""One measured run: emulated servers, a router, a load, and what they cost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from voltana.errors import UserError

_HERE = Path(__file__).parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_START_S = 60.0
_SETTLE_S = 1.5


class Load(NamedTuple):
    """What every run has in common."""

    seconds: float
    chunks: int
    gap_ms: float
    first_ms: float
    chunk_bytes: int


class Servers(NamedTuple):
    """Ports of the emulated servers."""

    prefill: tuple[int, int]
    decode: tuple[int, int]


class Contender(NamedTuple):
    """A router to measure."""

    name: str
    command: Callable[[Servers, int], list[str]]
    """From the servers and the port to listen at."""


class Percentiles(NamedTuple):
    """Of one kind of latency, in ms."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Result:
    """One run. CPU and memory are the router's, children included (0 in the direct run)."""

    sent: int
    completed: int
    chunks: int
    cpu_s: float
    rss_mb: float
    ttft_ms: Percentiles
    gap_ms: Percentiles
    delay_ms: Percentiles
    """From the server's sending of a chunk to its arrival at the client."""


def contenders(rivals: Path | None) -> list[Contender]:
    """Our router, and those found in a virtual environment."""
    found = [Contender("voltana-router", _ours)]
    if rivals is None:
        return found
    python = str(rivals / "bin" / "python")
    for name, module, extra in (
        ("sglang-router", "sglang_router", []),
        ("smg", "smg", []),
        ("mini-lb", "sglang_router", ["--mini-lb"]),
    ):
        if list(rivals.glob(f"lib/python3*/site-packages/{module}")):
            found.append(Contender(name, _rival(python, module, extra)))
    return found


def _ours(servers: Servers, port: int) -> list[str]:
    prefill = [f"http://127.0.0.1:{each},8998" for each in servers.prefill]
    decode = [f"http://127.0.0.1:{each}" for each in servers.decode]
    return [
        sys.executable,
        "-P",
        "-m",
        "voltana.live.router",
        "--prefill",
        *prefill,
        "--decode",
        *decode,
        "--port",
        str(port),
    ]


def _rival(python: str, module: str, extra: Sequence[str]) -> Callable[[Servers, int], list[str]]:
    def command(servers: Servers, port: int) -> list[str]:
        line = [python, "-m", f"{module}.launch_router", "--pd-disaggregation", "--host", "127.0.0.1"]
        line += ["--port", str(port), "--policy", "random" if extra else "round_robin", *extra]
        for each in servers.prefill:
            line += ["--prefill", f"http://127.0.0.1:{each}", "8998"]
        for each in servers.decode:
            line += ["--decode", f"http://127.0.0.1:{each}"]
        if not extra:
            line += ["--prometheus-port", str(free_port())]
        return line

    return command


class Bench:
    """Builds the C programs in a folder and runs them.

    Raises:
        UserError: there is no C compiler, or it fails.
    """

    def __init__(self, folder: Path, load: Load) -> None:
        self.folder = folder
        self.load = load
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise UserError("compiler: found none, allowed: cc or gcc on the PATH")
        for name in ("server", "load"):
            line = [compiler, "-O2", "-o", str(folder / name), str(_HERE / f"{name}.c"), "-lm"]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"compiler: {done.stderr.strip().splitlines()[0]}")

    def run(self, contender: Contender | None, rate: float, seed: int) -> Result:
        """Measure a router, or (None) the servers alone, at a rate in requests per second."""
        servers = Servers((free_port(), free_port()), (free_port(), free_port()))
        with self._serve(servers):
            if contender is None:
                return self._load(servers.decode, rate, seed, None)
            port = free_port()
            with self._started(contender.command(servers, port), contender.name) as router:
                _wait_until_routed(router, port, contender.name)
                time.sleep(_SETTLE_S)
                return self._load((port,), rate, seed, router.pid)

    @contextlib.contextmanager
    def _serve(self, servers: Servers) -> Iterator[None]:
        load = self.load
        line = [str(self.folder / "server"), _ports(servers.prefill), _ports(servers.decode), str(load.chunks)]
        line += [f"{load.gap_ms * 1e3:.0f}", f"{load.first_ms * 1e3:.0f}", str(load.chunk_bytes)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()
            process.communicate()

    @contextlib.contextmanager
    def _started(self, line: list[str], name: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _load(self, ports: Sequence[int], rate: float, seed: int, router: int | None) -> Result:
        out = self.folder / "out"
        before_s = cpu_s(router) if router else 0.0
        line = [str(self.folder / "load"), _ports(ports), str(rate), str(self.load.seconds), str(seed), str(out)]
        told = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
        ttft, gap, delay = (_percentiles(out.with_suffix(f".{kind}")) for kind in ("ttft", "gap", "delay"))
        used_s, rss = (cpu_s(router) - before_s, rss_mb(router)) if router else (0.0, 0.0)
        return Result(int(told[0]), int(told[1]), int(told[2]), used_s, rss, ttft, gap, delay)


def _wait_until_routed(router: subprocess.Popen[bytes], port: int, name: str) -> None:
    """Wait until the router passes a whole request; some answer /health long before."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate",
        data=b'{"text":"x","stream":true}',
        headers={"content-type": "application/json"},
    )
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and router.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if b"[DONE]" in answer.read():
                    return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"{name}: found no answer within {_START_S:g} s, allowed: a router that starts")


def _ports(ports: Sequence[int]) -> str:
    return ",".join(map(str, ports))


def _percentiles(file: Path) -> Percentiles:
    values_ms = np.fromfile(file, dtype=np.uint32) / 1000
    if not values_ms.size:
        return Percentiles(float("nan"), float("nan"))
    p50, p99 = np.percentile(values_ms, [50, 99])
    return Percentiles(float(p50), float(p99))


def free_port() -> int:
    """A TCP port nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _family(int(child))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its living and waited-for children, user and system."""
    total = 0
    for each in _family(pid):
        numbers = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += sum(map(int, numbers[11:15]))
    return total * _TICK_S


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its children, MB."""
    total = 0
    for each in _family(pid):
        lines = Path(f"/proc/{each}/status").read_text(encoding="utf-8").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1000

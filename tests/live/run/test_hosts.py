"""Two hosts: on each an owner of clocks, that of the other reached through a forwarded socket.

The other host is this machine, with a monotonic clock of its own where the kernel gives one (a time namespace).
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.run.conftest import Started
from voltana.live.clocks.client import ClockClient
from voltana.record import RunRecord
from voltana.sim.run.compose import compose_sim

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
ELSEWHERE = ("unshare", "--time", "--monotonic", "100000", "--fork", "--kill-child")
"""A host that started a day earlier; needs root."""
Attach = Callable[..., Started]
Checked = Callable[[Path], RunRecord]


def can_be_elsewhere() -> bool:
    with suppress(OSError):
        return subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode == 0
    return False


def until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)


@contextmanager
def owner(folder: Path, elsewhere: bool = False) -> Iterator[Path]:
    """An owner of two simulated GPUs; its socket."""
    values = compose_sim()
    settings = {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"], "gpus": 2}
    folder.mkdir()
    (folder / "gpus.json").write_text(json.dumps(settings))
    options = ("--gpus", "0,1", "--folder", str(folder), "--simulate", str(folder / "gpus.json"))
    command = (sys.executable, "-P", "-m", "voltana.live.clocks.command", *options)
    with (folder / "log").open("w") as log:
        whole = (*ELSEWHERE, *command) if elsewhere else command
        process = subprocess.Popen(whole, stdout=log, stderr=log, start_new_session=True)
    path = folder / "clocks.sock"
    try:
        until(path.exists)
        yield path
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # `unshare` itself holds it back
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Forward:
    """What `ssh -N -L PATH:TARGET` does, without a network in between."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self._target = path, target
        self._open: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.socket(socket.AF_UNIX)
                try:
                    there.connect(str(self._target))
                except OSError:  # nobody listens at the other end: ssh then hangs up
                    here.close()
                    continue
                self._open += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """The connection breaks."""
        for each in (self._listening, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, as the path of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="vh-") as folder:
        yield Path(folder)


def clocks(path: Path) -> list[int | None]:
    with ClockClient(path, "the test") as client:
        return [reading.clock_mhz for reading in client.read()]


def test_each_instance_is_driven_by_the_owner_of_its_host(short: Path, attach: Attach, checked: Checked) -> None:
    elsewhere = can_be_elsewhere()
    with owner(short / "a") as here, owner(short / "b", elsewhere) as there:
        forward = Forward(short / "b.sock", there)
        settings = ("control=nvml", f"control.socket={here}", "policy=static_1005", "rps=5")
        run = attach(*settings, owners={"decode": forward.path})
        ended = run.end()
        assert ended.status == 0, ended.output
        record = checked(ended.folder)
        frame, summary = record.instances(), record.summary
        driven = frame[frame.time_s > 0.5].groupby("instance").clock_mhz.agg(set).to_dict()
        assert driven == {f"{role}-{place}": {1005} for role in ("prefill", "decode") for place in (0, 1)}
        assert set(summary["live"]["energy_known_share"].values()) == {1.0}, (
            "readings of both are in the run's own time"
        )
        assert not summary["live"]["commands_refused"]
        idle_j = summary["energy_j"]["per_instance"]
        assert idle_j["decode-0"] == pytest.approx(idle_j["prefill-0"], rel=0.02), "all idle: nobody tells them a load"
        until(lambda: 1005 not in clocks(here) + clocks(there))
        for folder in ("a", "b"):
            assert "owns GPU 0 as" in (short / folder / "log").read_text()


def test_a_forward_that_breaks_ends_the_run_and_both_hosts_are_restored(short: Path, attach: Attach) -> None:
    with owner(short / "a") as here, owner(short / "b") as there:
        forward = Forward(short / "b.sock", there)
        settings = ("control=nvml", f"control.socket={here}", "policy=static_1005", "duration_s=60")
        run = attach(*settings, owners={"decode": forward.path})
        run.says("of 60 s:")
        until(lambda: clocks(there) == [1005, 1005])
        forward.cut()
        ended = run.end()
        assert ended.status == 3 and f"the owner of clocks is gone ({forward.path}: " in ended.output
        until(lambda: 1005 not in clocks(here) + clocks(there))


def test_a_forward_with_nobody_at_its_end_is_refused_in_one_line(short: Path, attach: Attach) -> None:
    with owner(short / "a") as here:
        forward = Forward(short / "b.sock", short / "nobody")
        ended = attach("control=nvml", f"control.socket={here}", owners={"decode": forward.path}).end()
    assert ended.status == 2
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith(f"voltana-live: error: {forward.path}: ") and "Traceback" not in ended.output


def test_a_socket_forwarded_by_ssh(short: Path) -> None:
    """Who connects is, to the owner, the process of sshd that runs as the user who logged in."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None or os.geteuid() != 0:
        pytest.skip("needs ssh, sshd and root")
    with ExitStack() as stack:
        there = stack.enter_context(owner(short / "b"))
        port = stack.enter_context(logins(sshd, short))
        path = short / "b.sock"
        command = ("ssh", "-N", "-i", str(short / "key"), "-p", str(port), "-L", f"{path}:{there}")
        quiet = (
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ExitOnForwardFailure=yes",
        )
        ssh = subprocess.Popen([*command, *quiet, "root@127.0.0.1"], stderr=subprocess.DEVNULL)
        stack.callback(ssh.wait)
        stack.callback(ssh.kill)
        until(path.exists)
        assert path.stat().st_mode & 0o077 == 0, "nobody else on this host may use the login"
        with ClockClient(path, "through ssh") as client:
            client.own("decode-0", [0, 1])
            client.set_clock("decode-0", 1005)
            until(lambda: clocks(there) == [1005, 1005])
            log = (short / "b" / "log").read_text()
            (pid,) = set(re.findall(r"'through ssh' \(process (\d+), user 0\)", log))
            assert "sshd" in Path(f"/proc/{pid}/cmdline").read_text()
            ssh.send_signal(signal.SIGKILL)
            until(lambda: 1005 not in clocks(there))


@contextmanager
def logins(sshd: str, folder: Path) -> Iterator[int]:
    """An sshd that takes the key `folder/key`; its port."""
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "allowed").write_text((folder / "key.pub").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = (
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'allowed'}",
        "PermitRootLogin prohibit-password",
        "StrictModes no",
        "UsePAM no",
        f"PidFile {folder / 'pid'}",
    )
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False

"""The owner serves its clients, and survives them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.device import DeviceError
from voltana.live.clocks.protocol import MAX_LINE, Applied, Changed, Lost, Refused, Slow, Superseded
from voltana.live.clocks.schedule import RETRY_S
from voltana.live.clocks.simulated import Load, SimulatedGpu

Start = Callable[..., Any]


def raw(path: Path) -> socket.socket:
    """A client that says what it likes."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10.0)
    connection.connect(str(path))
    return connection


def ask(connection: socket.socket, *lines: bytes | dict[str, Any]) -> list[dict[str, Any]]:
    """Send lines; returns as many answers."""
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    connection.sendall(data)
    received = b""
    while received.count(b"\n") < len(lines):
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return [json.loads(line) for line in received.splitlines()]


HELLO = {"op": "hello", "id": 0, "protocol": 1, "name": "raw"}


# What clients may do


def test_a_group_is_set_together_and_restored_on_release(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    assert sorted(clocks.gpus) == [0, 1, 2, 3]
    clocks.own("decode0", [2, 3])
    command = clocks.set_clock("decode0", 1005)
    applied = clocks.wait_for(Applied, command)
    assert (applied.setting, applied.value, applied.group) == ("clock", 1005, "decode0")
    assert owner.calls == [(2, "lock", 1005), (3, "lock", 1005)]
    wait_until(lambda: [reading.clock_mhz for reading in clocks.read()] == [1410, 1410, 1005, 1005])
    clocks.release("decode0")
    assert owner.calls[2:] == [(2, "reset", None), (3, "reset", None)]
    with pytest.raises(ClockError, match="found group 'decode0'; allowed: own one first"):
        clocks.release("decode0")


def test_a_power_cap_goes_back_to_what_was_found(start: Start, connect: Start) -> None:
    owner = start()
    owner.gpus[0].set_power_limit(350.0)
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_power_cap("a", 200.0))
    assert owner.gpus[0].power_limit_w() == 200.0
    clocks.wait_for(Applied, clocks.set_power_cap("a", None))
    assert owner.gpus[0].power_limit_w() == 350.0
    clocks.wait_for(Applied, clocks.set_power_cap("a", 150.0))
    clocks.close()
    owner.stop()
    assert owner.gpus[0].power_limit_w() == 350.0
    assert (0, "reset", None) not in owner.calls  # the clock was never touched


def test_the_same_clock_again_is_not_sent(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    assert clocks.set_clock("a", 1005) is None
    clocks.wait_for(Applied, clocks.set_clock("a", None))
    assert owner.calls == [(0, "lock", 1005), (0, "reset", None)]


def test_applied_is_what_the_gpus_show(start: Start, connect: Start) -> None:
    """A driver that accepts a clock and does not set it: refused once it was tried again, and applied when it is."""
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0, 1])
    owner.gpus[1].obeys = False
    number = clocks.set_clock("a", 1005)
    assert clocks.wait_for(Refused, number).message == "GPU 1: found clock 1410 MHz, set was 1005"
    assert clocks.set_power_cap("a", 250.0) is not None
    assert not [event for event in clocks.events if isinstance(event, Applied) and event.setting == "clock"]
    owner.gpus[1].obeys = True
    applied = clocks.wait_for(Applied, number)
    assert (applied.value, applied.found) == (1005, 1005)
    assert clocks.wait_for(Applied, number + 1).found == 250.0


def test_what_something_else_has_changed_is_not_applied(start: Start) -> None:
    """The clock that was set last is asked for again, between two looks of the owner, after `nvidia-smi -rgc`."""
    owner = start()
    with raw(owner.socket) as connection:
        clock = {"op": "clock", "group": "a", "mhz": 1005}
        ask(connection, HELLO, {"op": "own", "id": 1, "group": "a", "gpus": [0]}, {**clock, "id": 2})
        SimulatedGpu.reset_clock(owner.gpus[0])
        answer = ask(connection, {**clock, "id": 3})[0]
    assert (answer["is"], answer["id"], answer["found"]) == ("applied", 3, 1005)
    assert owner.calls[:2] == [(0, "lock", 1005)] * 2


def test_a_clock_in_force_is_acknowledged_without_the_driver(start: Start) -> None:
    owner = start()
    with raw(owner.socket) as connection:
        own, first = {"op": "own", "id": 1, "group": "a", "gpus": [0]}, {"op": "clock", "group": "a", "mhz": 1005}
        ask(connection, HELLO, own, {**first, "id": 2})
        answer = ask(connection, {**first, "id": 3})[0]
    assert (answer["is"], answer["id"], answer["driver_ms"]) == ("applied", 3, 0.0)
    assert owner.calls[0] == (0, "lock", 1005)
    assert (0, "lock", 1005) not in owner.calls[1:]


def test_watchers_are_told_of_changes(start: Start, connect: Start) -> None:
    owner = start()
    mine, other = connect(owner.socket, "mine"), connect(owner.socket, "other")
    other.watch([0, 1])
    mine.own("a", [0])
    mine.set_clock("a", 1200)
    changed = other.wait_for(Changed)
    assert (changed.gpus, changed.mhz) == ([0], 1200)
    assert 0.0 <= time.monotonic() - changed.time_s < 10.0
    mine.close()
    restored = [event.mhz for event in other.events]
    while restored[-1] is not None:
        restored = [event.mhz for event in other.events]
    assert restored == [1200, None]


def test_simulated_gpus_are_fed(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    idle_w = owner.gpus[1].power_w()
    clocks.feed([1], Load("decode", 128, 100_000))
    wait_until(lambda: clocks.read([1])[0].power_w > 1.5 * idle_w)
    first, start_s = clocks.read([1])[0], time.monotonic()
    wait_until(lambda: time.monotonic() - start_s > 0.2)
    second = clocks.read([1])[0]
    mean_w = (second.energy_j - first.energy_j) / (second.time_s - first.time_s)
    assert mean_w == pytest.approx(owner.gpus[1]._power_w, rel=0.05)


# What they may not


def test_two_clients_cannot_own_one_gpu(start: Start, connect: Start) -> None:
    owner = start()
    first, second = connect(owner.socket, "first"), connect(owner.socket, "second")
    first.own("a", [0, 1])
    with pytest.raises(ClockError, match=r"GPU 1 is owned by 'first' \(process \d+, user \d+\)") as caught:
        second.own("b", [1, 2])
    assert caught.value.code == "busy"
    second.own("b", [2])  # the refusal took nothing
    first.close()
    for _ in range(1000):
        try:
            second.own("c", [0, 1])
            return
        except ClockError:
            time.sleep(0.01)
    pytest.fail("the GPUs of a client that left were not given back")


@pytest.mark.parametrize(
    ("gpus", "code", "message"),
    [
        ([4], "unknown_gpu", "found GPU 4; allowed: 0, 1, 2, 3"),
        ([0, 0], "bad_message", "found GPUs [0, 0]; allowed: each once"),
        ([], "bad_message", "length >= 1"),
        ([-1], "bad_message", ">= 0"),
    ],
)
def test_only_listed_gpus(start: Start, connect: Start, gpus: list[int], code: str, message: str) -> None:
    owner = start()
    with raw(owner.socket) as connection:
        lines = [{"op": op, "id": 1, "gpus": gpus} for op in ("read", "watch")]
        lines += [{"op": "own", "id": 1, "gpus": gpus, "group": "a"}]
        lines += [{"op": "feed", "id": 1, "gpus": gpus, "phase": "idle"}]
        answers = ask(connection, HELLO, *lines)[1:]
    assert [answer["code"] for answer in answers] == [code] * 4
    assert all(message in answer["message"] for answer in answers)


def test_unsupported_values_are_refused_before_the_driver(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    for command in (lambda: clocks.set_clock("a", 1006), lambda: clocks.set_power_cap("a", 1.0)):
        number = command()
        refused = clocks.wait_for(Refused, number)
        assert refused.code == "unsupported"
        assert "allowed" in refused.message
        assert command() is not None  # what failed may be given again
    assert clocks.wait_for(Refused, clocks.set_clock("b", 1005)).code == "not_owner"
    assert owner.calls == []


def test_an_observing_owner_changes_nothing(start: Start, connect: Start) -> None:
    owner = start(observe=True)
    clocks = connect(owner.socket)
    assert clocks.observe
    with pytest.raises(ClockError, match="only observes"):
        clocks.own("a", [0])
    assert clocks.wait_for(Refused, clocks.set_clock("a", 1005)).code == "not_owner"
    assert clocks.read([0])[0].power_w > 0
    owner.stop()
    assert owner.calls == []


NOBODY = 65534
CONNECT = """
import os, socket, sys
path, user, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setgid(int(user))
os.setuid(int(user))
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
print(connection.recv(1000).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
class TestAccess:
    def as_nobody(self, path: Path, groups: list[int]) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-S", "-c", CONNECT, str(path), str(NOBODY), *map(str, groups)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    def owner(self, spawn: Start, wait_until: Start, folder: Path, settings_file: Path, *options: str) -> Path:
        for part in (folder, *folder.parents):
            if part != Path("/tmp") and part != Path("/"):
                part.chmod(part.stat().st_mode | 0o011)
        files = ["--simulate", str(settings_file), "--folder", str(folder)]
        spawn(["-m", "voltana.live.clocks.command", "--gpus", "0", *files, *options])
        wait_until((folder / "clocks.sock").exists, "the socket")
        return folder / "clocks.sock"

    def test_the_mode_keeps_others_out(
        self, spawn: Start, wait_until: Start, tmp_path: Path, settings_file: Path
    ) -> None:
        path = self.owner(spawn, wait_until, tmp_path, settings_file, "--group", "54321")
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_gid) == (0o660, 54321)
        assert "PermissionError" in self.as_nobody(path, []).stderr
        path.chmod(0o666)  # and if somebody opens the file, the kernel's word on the peer still does
        assert "user 65534 may not use this socket" in self.as_nobody(path, []).stdout

    def test_members_of_the_group_come_in(
        self, spawn: Start, wait_until: Start, tmp_path: Path, settings_file: Path
    ) -> None:
        path = self.owner(spawn, wait_until, tmp_path, settings_file, "--group", "54321", "--heartbeat-s", "0.2")
        answer = self.as_nobody(path, [54321])
        assert answer.stderr == ""
        assert "nothing was heard" in answer.stdout  # it was let in, and then said nothing


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no owner of GPU clocks is listening .*; start voltana-clocks"):
        ClockClient(tmp_path / "clocks.sock", "test")


# Order and pace


def test_the_newest_command_wins(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].go.clear()
    numbers = [clocks.set_clock("a", mhz) for mhz in (600, 615, 630, 645, 660)]
    wait_until(lambda: len(clocks.events) == 3, "three commands superseded")
    owner.gpus[0].go.set()
    clocks.wait_for(Applied, numbers[-1])
    assert [event.id for event in clocks.events if isinstance(event, Superseded)] == [*numbers[1:4], numbers[0]]
    assert [event.id for event in clocks.events if isinstance(event, Applied)] == [numbers[4]]
    assert owner.calls == [(0, "lock", 600), (0, "lock", 660)]


def test_a_command_back_to_what_is_in_force_needs_no_call(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.own("b", [1])
    clocks.wait_for(Applied, clocks.set_clock("a", 600))
    owner.gpus[1].go.clear()
    clocks.set_clock("b", 600)  # the driver is busy with the other GPU
    wait_until(lambda: (1, "lock", 600) in owner.calls)
    away = clocks.set_clock("a", 1410)
    back = clocks.set_clock("a", 600)
    clocks.wait_for(Superseded, away)
    owner.gpus[1].go.set()
    assert clocks.wait_for(Applied, back).driver_ms == 0.0
    clocks.release("b")
    assert (0, "lock", 1410) not in owner.calls


def test_commands_are_rate_limited(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start(changes_per_s=20.0, burst=3)
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    start_s, last = time.monotonic(), None
    while time.monotonic() - start_s < 0.5:
        for mhz in (600, 900):
            last = clocks.set_clock("a", mhz)
            time.sleep(0.001)
    clocks.wait_for(Applied, last)
    allowed = 3 + 20.0 * (time.monotonic() - start_s)
    assert 4 <= len(owner.calls) <= allowed + 1
    assert owner.calls[-1] == (0, "lock", 900)
    # GPUs keep their bucket when they are given up: owning them anew is no way around it
    clocks.release("a")
    calls = len(owner.calls)
    clocks.own("a", [0])
    again_s = time.monotonic()
    numbers = [clocks.set_clock("a", mhz) for mhz in (600, 900, 600)]
    clocks.wait_for(Applied, numbers[-1])
    assert len(owner.calls) - calls <= 1 + 20.0 * (time.monotonic() - again_s) + 1


def test_a_slow_driver_is_reported_and_others_are_answered(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start(slow_s=0.05, stuck_s=0.2)
    clocks, other = connect(owner.socket, "one"), connect(owner.socket, "other")
    clocks.own("a", [0])
    owner.gpus[0].go.clear()
    number = clocks.set_clock("a", 1005)
    slow = other.wait_for(Slow)
    assert "setting the clock of GPUs [0]" in slow.what
    other.own("b", [1])
    with pytest.raises(ClockError, match="GPU 0 is owned by 'one'"):
        other.own("c", [0])
    wait_until(lambda: time.monotonic() - owner.gpus[0]._meter.time_s > 0.3)
    with pytest.raises(ClockError, match="the driver has not answered") as caught:
        other.read([1])
    assert caught.value.code == "driver"
    assert other.wait_for(Refused, other.set_clock("b", 1005)).code == "driver"
    owner.gpus[0].go.set()
    clocks.wait_for(Applied, number)
    assert other.read([1])[0].clock_mhz == 1410


@pytest.mark.slow
def test_a_failed_call_is_told_and_can_be_tried_again(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0, 1])
    for error, code in ((DeviceError("lost", "GPU 0: GPU is lost"), "lost"), (ZeroDivisionError("a bug"), "driver")):
        owner.gpus[0].errors.append(error)
        refused = clocks.wait_for(Refused, clocks.set_clock("a", 1005))
        assert refused.code == code
        assert str(error) in refused.message
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    # a DeviceError of one GPU does not keep the other from being set
    assert owner.calls == [
        (0, "lock", 1005),
        (1, "lock", 1005),
        (0, "lock", 1005),
        (0, "lock", 1005),
        (1, "lock", 1005),
    ]


@pytest.mark.slow
def test_a_call_that_failed_is_made_again(start: Start, connect: Start, wait_until: Start) -> None:
    """By the owner, later each time; nobody has to command it again."""
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].errors += [DeviceError("driver", "not now")] * 2
    began_s = time.monotonic()
    number = clocks.set_clock("a", 1005)
    assert clocks.wait_for(Refused, number).message == "not now"
    clocks.wait_for(Applied, number)
    assert time.monotonic() - began_s > RETRY_S + 2 * RETRY_S
    assert owner.calls == [(0, "lock", 1005)] * 3
    assert owner.gpus[0].clock_mhz() == 1005 and clocks.desired("a", "clock") == 1005
    assert [type(event) for event in clocks.events if event.id == number] == [Refused, Applied], "refused once"


def test_a_newer_command_takes_the_place_of_one_that_failed(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].errors.append(DeviceError("driver", "not now"))
    clocks.wait_for(Refused, clocks.set_clock("a", 1005))
    clocks.wait_for(Applied, clocks.set_clock("a", 600))
    assert owner.calls == [(0, "lock", 1005), (0, "lock", 600)]


@pytest.mark.slow
def test_what_can_never_be_is_not_tried_again(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].errors.append(DeviceError("unsupported", "GPU 0: Not Supported"))
    clocks.wait_for(Refused, clocks.set_clock("a", 1005))
    time.sleep(2 * RETRY_S)
    assert owner.calls == [(0, "lock", 1005)]


@pytest.mark.slow
def test_nothing_is_made_again_for_a_client_that_left(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].errors.append(DeviceError("driver", "not now"))
    clocks.wait_for(Refused, clocks.set_clock("a", 1005))
    clocks.close()
    wait_until(lambda: (0, "reset", None) in owner.calls)
    time.sleep(2 * RETRY_S)
    assert owner.calls == [(0, "lock", 1005), (0, "reset", None)]


def test_a_command_that_met_a_driver_that_hangs_is_obeyed_when_it_is_back(start: Start, connect: Start) -> None:
    owner = start(slow_s=0.05, stuck_s=0.1)
    clocks, other = connect(owner.socket, "one"), connect(owner.socket, "other")
    clocks.own("a", [0])
    other.own("b", [1])
    owner.gpus[0].go.clear()
    clocks.set_clock("a", 1005)
    other.wait_for(Slow)
    time.sleep(0.1)
    number = other.set_clock("b", 600)
    assert other.wait_for(Refused, number).code == "driver"
    owner.gpus[0].go.set()
    other.wait_for(Applied, number)
    assert owner.gpus[1].clock_mhz() == 600


@pytest.mark.slow
def test_a_restore_that_fails_is_tried_again(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    owner.gpus[0].errors.append(DeviceError("driver", "not now"))
    clocks.close()
    wait_until(lambda: owner.calls.count((0, "reset", None)) == 2, "a second try")
    wait_until(lambda: not (owner.folder / "changed.json").exists(), "the note gone")
    assert owner.gpus[0].clock_mhz() == 1410


def test_reads_of_one_client_may_not_pile_up(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start(reads=3)
    clocks, reader = connect(owner.socket), connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].go.clear()
    clocks.set_clock("a", 1005)
    wait_until(lambda: owner.calls)
    futures = [reader.request_readings([1]) for _ in range(4)]
    with pytest.raises(ClockError, match="3 reads wait already"):
        futures[3].result(10.0)
    owner.gpus[0].go.set()
    assert all(future.result(10.0).readings[0].gpu == 1 for future in futures[:3])


# Clients that go away, or mad


def test_what_a_client_owned_is_restored_when_it_leaves(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.own("b", [1, 2])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    clocks.wait_for(Applied, clocks.set_clock("b", 600))
    assert (owner.folder / "changed.json").exists()
    clocks.close()
    wait_until(lambda: not (owner.folder / "changed.json").exists())
    assert [gpu.clock_mhz() for gpu in owner.gpus] == [1410] * 4


def test_a_silent_client_loses_its_gpus(start: Start, wait_until: Start) -> None:
    owner = start(heartbeat_s=0.3)
    with raw(owner.socket) as silent:
        command = {"op": "clock", "id": 2, "group": "a", "mhz": 1005}
        ask(silent, HELLO, {"op": "own", "id": 1, "group": "a", "gpus": [0]}, command)
        wait_until(lambda: owner.calls[-1] == (0, "reset", None))
        rest = silent.recv(1000)
    assert b"nothing was heard for 0.3 s" in rest


@pytest.mark.slow
def test_a_quiet_client_keeps_its_gpus_by_its_heartbeat(start: Start, connect: Start) -> None:
    owner = start(heartbeat_s=0.3)
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    time.sleep(1.0)
    clocks.wait_for(Applied, clocks.set_clock("a", 1200))
    assert owner.calls == [(0, "lock", 1005), (0, "lock", 1200)]


def test_the_client_learns_that_the_owner_stops(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    owner.stop()
    assert owner.failures == []
    assert owner.calls[-1] == (0, "reset", None)
    assert clocks.wait_for(Lost).message == "the owner is stopping"
    with pytest.raises(ClockError, match="no connection to the owner: the owner is stopping"):
        clocks.set_clock("a", 600)
    with pytest.raises(ClockError):
        clocks.read()


def test_a_gpu_that_cannot_be_restored_is_reported_at_the_end(start: Start, connect: Start) -> None:
    owner = start()
    clocks = connect(owner.socket)
    clocks.own("a", [0, 1])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    owner.gpus[0].errors += [DeviceError("lost", "GPU is lost")] * 9
    owner.stop()
    assert owner.failures == ["GPU 0: not restored: GPU is lost"]
    assert [entry["gpu"] for entry in json.loads((owner.folder / "changed.json").read_text())] == [0]


def test_a_driver_that_hangs_does_not_keep_the_owner_from_ending(
    start: Start, connect: Start, wait_until: Start
) -> None:
    owner = start(restore_s=0.2)
    clocks = connect(owner.socket)
    clocks.own("a", [0])
    owner.gpus[0].go.clear()
    clocks.set_clock("a", 1005)
    wait_until(lambda: owner.calls)
    threading.Timer(1.0, owner.gpus[0].go.set).start()
    owner.stop()
    assert owner.failures == ["GPU 0: not restored: the driver has not answered for 0.2 s"]


@pytest.mark.parametrize(
    "name", ["", "a\nvoltana-clocks: GPU 0: restored", "a\x1b[2J", " a", "a" * 65, "\u2028", "a\n"]
)
def test_names_that_could_pass_for_words_of_the_owner(
    start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    owner = start()
    caplog.set_level("INFO")
    own = {"op": "own", "id": 1, "group": name, "gpus": [0]}
    with raw(owner.socket) as connection:
        answers = ask(connection, {**HELLO, "name": name}, HELLO, own)
    assert [answer["is"] for answer in answers] == ["refused", "welcome", "refused"]
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_a_silent_client_is_hung_up_on(start: Start) -> None:
    """One that owns nothing, too: it would hold its place for ever."""
    owner = start(heartbeat_s=0.3)
    with raw(owner.socket) as silent:
        ask(silent, HELLO)
        assert b"nothing was heard for 0.3 s" in silent.recv(1000)


@pytest.mark.slow
def test_idle_clients_cannot_keep_others_out(start: Start, connect: Start) -> None:
    """Heartbeats alone hold no place; owning a GPU does, and so does asking for something now and then."""
    owner = start(clients=4, heartbeat_s=0.5)
    quiet, reader, *idle = (connect(owner.socket, name) for name in ("quiet", "reader", "idle", "idle"))
    quiet.own("a", [0])
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        reader.read([1])
        time.sleep(0.05)
    for client in idle:
        assert connect(owner.socket, "new").read([1])
        assert "another client wanted its place" in client.wait_for(Lost).message
    reader.read([1])
    quiet.wait_for(Applied, quiet.set_clock("a", 1005))
    with pytest.raises(ClockError, match="4 clients are connected, no more are allowed"):
        connect(owner.socket, "one too many")


def test_too_many_clients_are_turned_away(start: Start, connect: Start) -> None:
    owner = start(clients=2)
    first = connect(owner.socket)
    connect(owner.socket)
    with pytest.raises(ClockError, match="2 clients are connected, no more are allowed"):
        connect(owner.socket)
    assert first.read([0])


def test_a_client_that_does_not_read_is_dropped(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start(heartbeat_s=60.0, requests_per_s=1e6)
    with raw(owner.socket) as deaf:
        deaf.sendall(json.dumps(HELLO).encode() + b"\n")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            for _ in range(100_000):
                deaf.sendall(b"nonsense\n" * 100)
    assert connect(owner.socket).read([0])


def test_hello_comes_first_and_in_the_right_protocol(start: Start) -> None:
    owner = start(heartbeat_s=0.3)
    with raw(owner.socket) as connection:
        answers = ask(connection, {"op": "ping", "id": 5}, {**HELLO, "protocol": 99})
        assert [answer["message"] for answer in answers] == [
            "found another request before hello; allowed: hello first",
            "found protocol 99; allowed: 1",
        ]
        assert b"nothing was heard" in connection.recv(1000)


def test_a_long_line_ends_the_connection(start: Start, connect: Start) -> None:
    owner = start()
    with raw(owner.socket) as connection:
        connection.sendall(b'{"op":"' + b"x" * (2 * MAX_LINE))
        assert b"longer than 65536 bytes" in connection.recv(1000)
    assert connect(owner.socket).read([0])


def test_a_command_cut_off_by_death_is_not_obeyed(start: Start, connect: Start, wait_until: Start) -> None:
    owner = start()
    with raw(owner.socket) as connection:
        ask(connection, HELLO, {"op": "own", "id": 1, "group": "a", "gpus": [0]})
        connection.sendall(b'{"op":"clock","id":2,"group":"a","mhz":210}')  # no newline
    other = connect(owner.socket)

    def owned() -> bool:
        try:
            other.own("b", [0])
        except ClockError:
            return False
        return True

    wait_until(owned)
    assert owner.calls == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
almost = st.fixed_dictionaries(
    {"op": st.sampled_from(["hello", "ping", "own", "release", "clock", "power", "read", "watch", "feed"])},
    optional={
        "id": st.integers(-1, 3) | json_values,
        "protocol": st.just(1) | json_values,
        "name": st.text(max_size=70) | json_values,
        "group": st.sampled_from(["a", "b"]) | json_values,
        "gpus": st.lists(st.integers(-1, 5), max_size=4) | json_values,
        "mhz": st.sampled_from([None, 210, 1005, 1410]) | json_values,
        "watts": st.sampled_from([None, 100.0, 400.0]) | json_values,
        "phase": st.sampled_from(["idle", "decode", "prefill"]) | json_values,
        "requests": st.integers(0, 10**7) | json_values,
        "tokens": st.integers(0, 10**9) | json_values,
        "token_pairs": st.floats() | json_values,
    },
)
lines = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    almost.map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 5000),
)


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory, plant: Any, make_owner: Start) -> Any:
    owner = make_owner(tmp_path_factory.mktemp("robust"), plant)
    yield owner
    owner.stop()


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, min_size=1, max_size=12), st.booleans())
def test_garbage_never_kills_the_owner(robust: Any, frames: list[bytes], greet: bool) -> None:
    with raw(robust.socket) as connection:
        try:
            if greet:
                ask(connection, HELLO)
            connection.sendall(b"\n".join(frames) + b"\n")
        except OSError:
            pass  # it may hang up
    with raw(robust.socket) as connection:
        assert ask(connection, HELLO)[0]["is"] == "welcome"
    assert robust.alive


def test_after_all_that_nothing_is_left_changed(robust: Any, wait_until: Start) -> None:
    wait_until(lambda: not (robust.folder / "changed.json").exists())
    wait_until(lambda: all(gpu.clock_mhz() == 1410 for gpu in robust.gpus))
    assert {value for _, call, value in robust.calls if call == "lock"} <= set(robust.gpus[0].info.clocks_mhz)

"""The owner against faults of a driver: NVIDIA's own binding, and a stand-in for the library behind it.

The owner is a process of its own, since a process loads a library once. GPU 3 is there but never listed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voltana.live.clocks.client import ClockError
from voltana.live.clocks.control import NvmlControl
from voltana.live.clocks.protocol import Applied, Refused, Slow
from voltana.live.clocks.schedule import CHECK_S
from voltana.live.controller import Controller
from voltana.live.gpus.owned import OwnedGpus
from voltana.live.telemetry.message import IDLE, Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.state import Decision, LoadSnapshot

pytestmark = pytest.mark.slow

Go = Callable[..., Any]
SOCKET = "clocks.sock"
NO_PERMISSION, GPU_IS_LOST, NOT_SUPPORTED, VERSION_MISMATCH, UNKNOWN = 4, 15, 3, 18, 999


def test_the_binding_sees_the_gpus(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    own()
    clocks = connect(tmp_path / SOCKET)
    info = clocks.gpus[2]
    assert (info.uuid, info.name) == (standin.uuid(2), "Stand-in A100")
    assert info.clocks_mhz == tuple(range(210, 1411, 15))
    assert (info.default_power_limit_w, info.power_limit_range_w) == (400.0, (100.0, 400.0))
    first, second = (clocks.read([2])[0] for _ in range(2))
    assert (first.power_w, first.clock_mhz) == (100.0, 1410)
    assert 0.0 <= second.energy_j - first.energy_j < 1000.0
    assert standin.locked() == [0, 0, 0, 0]


def test_settings_are_made_and_restored_on_sigterm(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    standin.set(1, "limit_mw", 350_000)  # an administrator's choice
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("pair", [0, 1])
    clocks.wait_for(Applied, clocks.set_clock("pair", 1005))
    clocks.wait_for(Applied, clocks.set_power_cap("pair", 250.5))
    assert standin.locked() == [1005, 1005, 0, 0]
    assert [standin.get(gpu, "limit_mw") for gpu in range(3)] == [250_500, 250_500, 400_000]
    owner.send_signal(signal.SIGTERM)
    assert owner.wait(60) == 0
    assert standin.locked() == [0, 0, 0, 0]
    assert [standin.get(gpu, "limit_mw") for gpu in range(3)] == [400_000, 350_000, 400_000]
    assert [standin.get(3, field) for field in ("locks", "resets")] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpus", "owner.lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_other_signals_restore_too(own: Go, standin: Any, connect: Go, tmp_path: Path, number: signal.Signals) -> None:
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 600))
    owner.send_signal(number)
    assert owner.wait(60) == 0
    assert standin.locked() == [0, 0, 0, 0]


CLIENT = """
import pathlib, sys, threading
from voltana.live.clocks.client import ClockClient
from voltana.live.clocks.protocol import Applied
done = threading.Event()
clocks = ClockClient(pathlib.Path(sys.argv[1]), "victim", lambda event: isinstance(event, Applied) and done.set())
clocks.own("a", [0, 1])
clocks.set_clock("a", 1005)
done.wait(60)
print("set", flush=True)
threading.Event().wait(60)
"""


def victim(spawn: Go, tmp_path: Path) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = spawn(["-c", CLIENT, str(tmp_path / SOCKET)])
    assert process.stdout is not None
    assert process.stdout.readline() == "set\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_client_that_is_killed_or_frozen_loses_its_gpus(
    own: Go, spawn: Go, standin: Any, wait_until: Go, tmp_path: Path, number: signal.Signals
) -> None:
    own("--heartbeat-s", "0.5")
    client = victim(spawn, tmp_path)
    assert standin.locked() == [1005, 1005, 0, 0]
    client.send_signal(number)
    wait_until(lambda: standin.locked() == [0, 0, 0, 0], "the restore")
    wait_until(lambda: not (tmp_path / "changed.json").exists(), "the note gone")


def test_after_a_sigkill_the_next_owner_restores(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0, 1])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    clocks.wait_for(Applied, clocks.set_power_cap("a", 200.0))
    owner.kill()
    owner.wait(60)
    assert standin.locked() == [1005, 1005, 0, 0]  # nobody was there to restore them
    own(gpus="2")  # another list: what was left behind is restored all the same
    assert standin.locked() == [0, 0, 0, 0]
    assert [standin.get(gpu, "limit_mw") for gpu in range(3)] == [400_000] * 3
    assert not (tmp_path / "changed.json").exists()


def test_restore_alone(own: Go, standin: Any, connect: Go, spawn: Go, tmp_path: Path) -> None:
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [2])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    restore = ["-m", "voltana.live.clocks.command", "--restore", "--folder", str(tmp_path)]
    while_it_runs = spawn(restore, env=standin.environment)
    assert "another owner is running" in while_it_runs.communicate(timeout=60)[1]
    assert standin.locked() == [0, 0, 1005, 0]
    owner.kill()
    owner.wait(60)
    after = spawn(restore, env=standin.environment)
    assert "GPU 2: a previous owner left it changed; restored" in after.communicate(timeout=60)[1]
    assert after.returncode == 0
    assert standin.locked() == [0, 0, 0, 0]


def test_an_unreadable_note_restores_all_listed_gpus(own: Go, standin: Any, tmp_path: Path) -> None:
    standin.set(1, "locked_mhz", 600)
    standin.set(3, "locked_mhz", 600)
    (tmp_path / "changed.json").write_text("[{")
    own()
    assert standin.locked() == [0, 0, 0, 600]
    assert (tmp_path / "changed.unreadable").exists()


def test_without_permission(own: Go, refused: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    for gpu in range(4):
        standin.set(gpu, "fault_change", NO_PERMISSION)
    line = refused("--gpus", "0", "--folder", str(tmp_path), env=standin.environment)
    assert line == (
        "voltana-clocks: error: GPU 0: Insufficient Permissions; run voltana-clocks as root (sudo voltana-clocks ...), "
        "or with --observe, which changes nothing"
    )
    own("--observe")
    clocks = connect(tmp_path / SOCKET)
    assert clocks.read([0])[0].power_w == 100.0
    with pytest.raises(ClockError, match="only observes"):
        clocks.own("a", [0])
    assert standin.get(0, "locks") == 0


def test_permission_that_is_taken_away(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    standin.set(0, "fault_change", NO_PERMISSION)
    answer = clocks.wait_for(Refused, clocks.set_clock("a", 1005))
    assert (answer.code, answer.message) == ("permission", "GPU 0: Insufficient Permissions")
    standin.set(0, "fault_change", 0)
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))


def test_what_something_else_has_changed_is_set_again(
    own: Go, standin: Any, connect: Go, wait_until: Go, tmp_path: Path
) -> None:
    """As by nvidia-smi -rgc and -pl, or another owner; and only for as long as the client is there."""
    own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("pair", [0, 1])
    clocks.wait_for(Applied, clocks.set_clock("pair", 1005))
    clocks.wait_for(Applied, clocks.set_power_cap("pair", 250.0))
    standin.set(1, "locked_mhz", 0)
    wait_until(lambda: standin.locked() == [1005, 1005, 0, 0], "the clock set again")
    standin.set(0, "limit_mw", 400_000)
    wait_until(lambda: standin.get(0, "limit_mw") == 250_000, "the power limit set again")
    assert standin.get(2, "locks") == 0
    clocks.release("pair")
    standin.set(1, "locked_mhz", 1200)
    standin.set(1, "limit_mw", 350_000)
    time.sleep(3 * CHECK_S)
    assert (standin.locked(), standin.get(1, "limit_mw")) == ([0, 1200, 0, 0], 350_000)


class AlwaysTheSame:
    """A controller that wants one clock."""

    def decide(self, load: LoadSnapshot) -> Decision:
        return Decision(1005)


def test_one_error_at_the_start_does_not_leave_the_gpu_as_it_was(own: Go, standin: Any, tmp_path: Path) -> None:
    """The whole way from decisions to a driver that fails once; the controller wants the same clock all the time."""
    own()
    standin.set(0, "fault_change", UNKNOWN)

    async def decide_often() -> Controller:
        gpus = OwnedGpus(NvmlControl(socket=str(tmp_path / SOCKET)), {"d": [0]}, "test", drives=True)
        await gpus.open()
        with Subscriber() as subscriber:
            controller = Controller({"d": AlwaysTheSame()}, gpus, subscriber)
            controller.start()
            async with asyncio.timeout(60):
                while not gpus.refused():
                    await asyncio.sleep(0.005)
                standin.set(0, "fault_change", 0)
                decisions = 0
                while decisions < 300 or standin.locked()[0] != 1005:
                    load = IDLE._replace(batch_size=1)
                    controller.on_telemetry(Telemetry("d", "decode", load, 0, time.monotonic(), 0.0))
                    decisions += 1
                    await asyncio.sleep(0.002)
            controller.stop()
        refused = gpus.refused()
        await gpus.close()
        assert sum(refused.values()) == 1
        return controller

    controller = asyncio.run(decide_often())
    assert standin.get(0, "locks") == 2, "once in vain, once for good"
    assert controller.clock_changes == 0 and controller.errors == 0


def test_a_gpu_that_is_lost(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0, 1])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    standin.set(0, "fault_all", GPU_IS_LOST)
    answer = clocks.wait_for(Refused, clocks.set_clock("a", 1200))
    assert (answer.code, answer.message) == ("lost", "GPU 0: GPU is lost")
    assert standin.locked()[1] == 1200  # the other GPU of the group is set
    with pytest.raises(ClockError, match="GPU is lost") as caught:
        clocks.read([0])
    assert caught.value.code == "lost"
    assert clocks.read([1])[0].power_w == 100.0
    owner.terminate()
    _, text = owner.communicate(timeout=60)
    assert owner.returncode == 3
    assert "GPU 0: not restored: GPU 0: GPU is lost" in text
    assert standin.locked() == [1005, 0, 0, 0]
    assert [entry["gpu"] for entry in json.loads((tmp_path / "changed.json").read_text())] == [0]
    standin.set(0, "fault_all", 0)  # the machine was rebooted, say
    own()
    assert standin.locked() == [0, 0, 0, 0]


def test_a_slow_driver(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    own()
    clocks, other = connect(tmp_path / SOCKET, "one"), connect(tmp_path / SOCKET, "other")
    clocks.own("a", [0])
    other.own("b", [1])
    standin.set(0, "delay_ms", 300)
    number = clocks.set_clock("a", 1005)
    slow = other.wait_for(Slow)
    assert slow.what == "setting the clock of GPUs [0]"
    other.watch([1])  # answered while the call is under way
    assert not [event for event in clocks.events if isinstance(event, Applied)]
    later = other.set_clock("b", 1005)
    assert clocks.wait_for(Applied, number).driver_ms >= 300.0
    assert other.wait_for(Applied, later).driver_ms < 300.0
    assert [standin.get(gpu, "overlaps") for gpu in range(3)] == [0, 0, 0]


def test_calls_are_serialised(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    """One call at a time on the host, whoever commands."""
    own("--changes-per-s", "1000")
    for gpu in range(3):
        standin.set(gpu, "delay_ms", 2)
    clients = [connect(tmp_path / SOCKET, f"{gpu}") for gpu in range(3)]
    for gpu, clocks in enumerate(clients):
        clocks.own("a", [gpu])
    numbers = [[clocks.set_clock("a", mhz) for clocks in clients] for mhz in (600, 1005, 1410, 600, 900)]
    for clocks, number in zip(clients, numbers[-1], strict=True):
        clocks.wait_for(Applied, number)
    assert [standin.get(gpu, "overlaps") for gpu in range(3)] == [0, 0, 0]
    assert standin.locked() == [900, 900, 900, 0]


def test_an_unsupported_clock_never_reaches_the_driver(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    answer = clocks.wait_for(Refused, clocks.set_clock("a", 1411))
    assert answer.code == "unsupported"
    assert standin.get(0, "locks") == 0


def test_clocks_that_this_gpu_cannot_lock(refused: Go, own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    standin.set(0, "fault_change", NOT_SUPPORTED)
    line = refused("--gpus", "1,0", "--folder", str(tmp_path), env=standin.environment)
    assert line.endswith("--gpus: GPU 0: Not Supported; its clock cannot be locked; allowed with --observe alone")
    standin.set(0, "fault_change", 0)
    own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    standin.set(0, "fault_change", NOT_SUPPORTED)
    answer = clocks.wait_for(Refused, clocks.set_clock("a", 1005))
    assert (answer.code, answer.message) == ("unsupported", "GPU 0: Not Supported")


@pytest.mark.parametrize("code", [NO_PERMISSION, NOT_SUPPORTED])
def test_a_host_that_forbids_power_limits_and_allows_clocks(
    own: Go, standin: Any, connect: Go, tmp_path: Path, code: int
) -> None:
    for gpu in range(4):
        standin.set(gpu, "fault_limit", code)
    own()
    clocks = connect(tmp_path / SOCKET)
    assert clocks.gpus[0].power_limit_range_w is None
    clocks.own("a", [0])
    assert clocks.wait_for(Applied, clocks.set_clock("a", 1005)).found == 1005
    refused = clocks.wait_for(Refused, clocks.set_power_cap("a", 250.0))
    assert (refused.code, refused.message) == ("unsupported", "GPU 0: its power cannot be capped")


def test_clocks_that_are_not_listed(refused: Go, own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    """From the lowest to the highest in steps; if those are not told either, refused at the start."""
    for gpu in range(4):
        standin.set(gpu, "fault_list", NOT_SUPPORTED)
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    assert clocks.gpus[0].clocks_mhz == tuple(range(210, 1411, 15))
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    owner.terminate()
    owner.wait(60)
    standin.set(1, "fault_pstate", NOT_SUPPORTED)
    line = refused("--gpus", "0,1", "--folder", str(tmp_path), env=standin.environment)
    assert line.endswith("--gpus: GPU 1: found no clocks that it supports; allowed with --observe alone")


def test_a_gpu_that_is_divided(refused: Go, standin: Any, tmp_path: Path) -> None:
    standin.set(2, "mig", 1)
    line = refused("--gpus", "0,2", "--folder", str(tmp_path), env=standin.environment)
    assert line.endswith("--gpus: GPU 2: found it divided (MIG), allowed: whole GPUs, or --observe")


def test_power_now_where_the_driver_tells_it(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    """GPU 0 as an H100 of a new driver, GPU 1 as one of an old driver, GPU 2 as an A100 of an old one."""
    standin.set(0, "instant_mw", 321_000)
    for gpu, capability in ((0, 90), (1, 90), (2, 80)):
        standin.set(gpu, "capability", capability)
    own()
    clocks = connect(tmp_path / SOCKET)
    assert [reading.power_w for reading in clocks.read([0, 1, 2])] == [321.0, 100.0, 100.0]
    assert [clocks.gpus[gpu].power_meter for gpu in range(3)] == [
        "NVML_FI_DEV_POWER_INSTANT",
        "nvmlDeviceGetPowerUsage, mean of 1 s",
        "nvmlDeviceGetPowerUsage, instantaneous",
    ]
    standin.set(0, "instant_mw", 0)
    assert clocks.read([0])[0].power_w is None, "the two are not mixed"


def test_no_energy_counter(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    standin.set(0, "fault_energy", NOT_SUPPORTED)
    own()
    reading = connect(tmp_path / SOCKET).read([0])[0]
    assert (reading.energy_j, reading.power_w, reading.clock_mhz) == (None, 100.0, 1410)


def test_a_restore_that_fails_at_first(own: Go, standin: Any, connect: Go, wait_until: Go, tmp_path: Path) -> None:
    own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    standin.set(0, "fault_reset", 999)
    clocks.close()
    wait_until(lambda: standin.get(0, "resets") >= 1)
    standin.set(0, "fault_reset", 0)
    wait_until(lambda: standin.locked() == [0, 0, 0, 0])


def test_a_driver_that_never_comes_back(own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    """The owner says so and keeps its note; SIGTERM is not ignored for ever."""
    owner = own("--restore-s", "0.5")
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    standin.set(0, "delay_ms", 60_000)
    clocks.set_clock("a", 600)
    clocks.wait_for(Slow)
    owner.terminate()
    _, text = owner.communicate(timeout=30)
    assert owner.returncode == 3
    assert "GPU 0: not restored: the driver has not answered for 0.5 s" in text
    assert (tmp_path / "changed.json").exists()


def test_no_driver(refused: Go, own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(empty)}
    line = refused("--gpus", "0", "--folder", str(tmp_path), env=environment)
    if "libnvidia-ml.so.1 was not found" not in line:
        pytest.skip("this host has a driver of its own")
    assert line.endswith("only control=observe works without it")


def test_a_driver_that_does_not_start(refused: Go, own: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    standin.fail_to_start(VERSION_MISMATCH)
    line = refused("--gpus", "0", "--folder", str(tmp_path), env=standin.environment)
    assert "reboot: the driver was updated under the running kernel" in line
    own("--observe")
    clocks = connect(tmp_path / SOCKET)
    reading = clocks.read([1])[0]
    assert (reading.power_w, reading.energy_j, reading.clock_mhz) == (None, None, None)
    assert clocks.gpus[1].name == "unknown (no driver)"


def test_an_unknown_gpu(refused: Go, standin: Any, tmp_path: Path) -> None:
    line = refused("--gpus", "0,4", "--folder", str(tmp_path), env=standin.environment)
    assert line == "voltana-clocks: error: --gpus: GPU 4: found no such index; allowed: 0 to 3"


def test_gpus_by_uuid(own: Go, refused: Go, standin: Any, connect: Go, tmp_path: Path) -> None:
    """As a harness gives them that counts the GPUs of its job alone."""
    both = f"{standin.uuid(2)},2"
    line = refused("--gpus", both, "--folder", str(tmp_path), env=standin.environment)
    assert line.endswith(f"--gpus: found {both}; allowed: each GPU once")
    own(gpus=f"{standin.uuid(2)},0")
    gpus = OwnedGpus(
        NvmlControl(socket=str(tmp_path / SOCKET)),
        {"p": [standin.uuid(2)], "d": [standin.uuid(0)]},
        "test",
        drives=True,
    )

    async def set_both() -> None:
        await gpus.open()
        await gpus.apply("p", 1005)
        await gpus.apply("d", 600)
        assert standin.locked() == [600, 0, 1005, 0]
        await gpus.close()

    asyncio.run(set_both())


def test_a_second_owner(refused: Go, own: Go, standin: Any, tmp_path: Path) -> None:
    own()
    line = refused("--gpus", "3", "--folder", str(tmp_path), env=standin.environment)
    assert "owner.lock: another owner is running" in line


def test_a_second_owner_in_another_folder(
    refused: Go, own: Go, spawn: Go, standin: Any, connect: Go, tmp_path: Path
) -> None:
    """Refused whoever runs it, also while the first is frozen, and only for the GPUs that the first has."""
    owner = own()
    clocks = connect(tmp_path / SOCKET)
    clocks.own("a", [0])
    clocks.wait_for(Applied, clocks.set_clock("a", 1005))
    elsewhere = tmp_path / "elsewhere"
    options = ("--folder", str(elsewhere))
    owner.send_signal(signal.SIGSTOP)
    line = refused("--gpus", "3,0", *options, env=standin.environment)
    assert line.endswith(
        f"error: GPU 0: another owner has it (process {owner.pid} of user {os.geteuid()}); stop it first"
    )
    assert standin.locked() == [1005, 0, 0, 0]
    (elsewhere / "changed.json").write_text(json.dumps([{"gpu": 0, "uuid": standin.uuid(0), "clock": True}]))
    restore = spawn(["-m", "voltana.live.clocks.command", "--restore", *options], env=standin.environment)
    assert "not restored: GPU 0: another owner has it" in restore.communicate(timeout=60)[1]
    assert restore.returncode == 3 and standin.locked() == [1005, 0, 0, 0]
    owner.kill()
    owner.wait(60)
    restore = spawn(["-m", "voltana.live.clocks.command", "--restore", *options], env=standin.environment)
    assert restore.wait(60) == 0 and standin.locked() == [0, 0, 0, 0]

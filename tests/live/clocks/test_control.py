"""The choices of `control`, and the command line of the owner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from tests.bench import clocks as bench
from voltana.app.compose import instantiate
from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.control import NvmlControl, ObserveControl, SimulatedControl, started_owner
from voltana.live.clocks.protocol import Applied, Lost
from voltana.live.clocks.simulated import Load

pytestmark = pytest.mark.slow

Go = Callable[..., Any]


def control(*overrides: str) -> Any:
    """A control as a command would make it from the configuration."""
    with initialize_config_module("voltana.conf", version_base="1.3"):
        parts = ["+gpu=a100_sxm4_80g", "+model=qwen3_32b", "+serving=sglang", "+seed=3"]
        return instantiate(compose(overrides=[*parts, *overrides]).control)


def test_every_choice_can_be_made() -> None:
    assert isinstance(control("+control=nvml"), NvmlControl)
    assert isinstance(control("+control=observe"), ObserveControl)
    alone, like_the_simulator = control("+control=simulated"), control("+control=simulated", "+actuation=nvml")
    assert isinstance(alone, SimulatedControl)
    assert (alone._settings["settle_s"], like_the_simulator._settings["settle_s"]) == (0.020, 0.010)


def test_simulated_gpus_behind_a_process(wait_until: Go) -> None:
    events: list[Any] = []
    with control("+control=simulated").open([2, 3], "test", events.append) as clocks:
        pid = clocks.owner_pid
        assert sorted(clocks.gpus) == [2, 3]
        assert clocks.gpus[3].settle_s == 0.020
        clocks.own("decode0", [2, 3])
        clocks.feed([2, 3], Load("decode", 16, 10_000))
        number = clocks.set_clock("decode0", 1005)
        wait_until(lambda: [event for event in events if isinstance(event, Applied) and event.id == number])
        assert events[-1].driver_ms >= 6.0  # 3 ms each
        wait_until(lambda: [reading.clock_mhz for reading in clocks.read()] == [1005, 1005])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_observing_needs_nothing() -> None:
    """With a driver it shows what there is; without one it says null."""
    with ObserveControl().open([0], "test") as clocks:
        reading = clocks.read([0])[0]
        assert clocks.observe
        assert (reading.power_w is None) == clocks.gpus[0].name.startswith("unknown")


def test_an_owner_that_was_not_given_the_gpu(start: Go) -> None:
    owner = start()
    nvml = NvmlControl(socket=str(owner.socket))
    with nvml.open([0, 1], "test") as clocks:
        assert clocks.read([1])
    with pytest.raises(UserError, match=r"the owner was not given GPU 7; it has 0 \(GPU-"), nvml.open([7], "test"):
        pass
    with nvml.open([owner.gpus[2].info.uuid, 1], "test") as clocks:
        assert clocks.indices([owner.gpus[2].info.uuid, 1]) == [2, 1]


def test_the_owners_refusal_is_passed_on() -> None:
    refused = control("+control=simulated", "control.block_s=-1")
    with pytest.raises(UserError, match="simulated GPUs: block_s: found -1"), refused.open([0], "test"):
        pass


HARNESS = """
import sys, time
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.control import started_owner
with started_owner([0], ["--simulate", sys.argv[1]]) as socket, ClockClient(socket, "harness") as clocks:
    print(clocks.owner_pid, socket, flush=True)
    time.sleep(60)
"""


def test_the_owner_ends_with_a_harness_that_is_killed(spawn: Go, wait_until: Go, settings_file: Path) -> None:
    harness: subprocess.Popen[str] = spawn(["-c", HARNESS, str(settings_file)])
    assert harness.stdout is not None
    pid, _, socket = harness.stdout.readline().strip().partition(" ")
    harness.send_signal(signal.SIGKILL)
    harness.wait(60)

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(gone, "the end of the owner")
    assert not Path(socket).parent.exists()


def test_a_frozen_owner_is_lost(settings_file: Path, wait_until: Go) -> None:
    """Its socket still takes connections and bytes. What waits for it fails, and it goes with whoever started it."""
    events: list[Any] = []
    with started_owner([0], ["--simulate", str(settings_file)]) as path:
        with ClockClient(path, "test", events.append, timeout_s=1.0) as clocks:
            pid = clocks.owner_pid
            time.sleep(1.5)
            assert clocks.read([0]), "heartbeats are answered"
            os.kill(pid, signal.SIGSTOP)
            waiting = clocks.request_readings([0])
            wait_until(lambda: any(isinstance(event, Lost) for event in events), "the loss of the owner")
            assert events[-1].message == "it has not answered for 1 s"
            with pytest.raises(ClockError, match="no connection to the owner: it has not answered for 1 s"):
                waiting.result(1.0)
        with pytest.raises(ClockError, match=r"the owner has not answered for 0\.2 s"):
            ClockClient(path, "late", timeout_s=0.2)
        for_ever = [connected(path) for _ in range(200)]
        with pytest.raises(UserError, match=r"the owner of GPU clocks takes no connection; is it stopped\?"):
            ClockClient(path, "late", timeout_s=0.2)
        for connection in for_ever:
            connection.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not path.parent.exists()


def connected(path: Path) -> socket.socket:
    """A client that takes a place in the queue, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    with suppress(BlockingIOError):
        connection.connect(str(path))
    return connection


def test_an_interrupt_of_the_terminal_is_not_for_the_owner(settings_file: Path) -> None:
    with started_owner([0], ["--simulate", str(settings_file)]) as socket, ClockClient(socket, "test") as clocks:
        assert os.getsid(clocks.owner_pid) != os.getsid(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--gpus: nothing found; allowed: the indices or UUIDs of the GPUs to own"),
        (["--gpus", "0,0"], "argument --gpus: found '0,0'; allowed: indices such as 0,1,2,3, or UUIDs, each once"),
        (["--gpus", "one"], "argument --gpus: found 'one'; allowed: indices"),
        (["--gpus", "0", "--warp"], "unrecognized arguments: --warp; see --help"),
        (["--gpus", "0", "--changes-per-s", "0"], "--changes-per-s: found 0; allowed: 1 to 1000"),
        (["--gpus", "0", "--group", "no-such-group"], "--group: found 'no-such-group'"),
        (["--gpus", "0", "--simulate", "/no/such.json"], "/no/such.json: No such file or directory"),
        (["--gpus", "0", "--simulate", "LIST"], "found list, allowed: JSON with gpu, model, engine, gpus"),
        (["--gpus", "GPU-9", "--simulate", "SETTINGS"], "--gpus: no GPU with UUID GPU-9"),
        (["--gpus", "9", "--simulate", "SETTINGS"], "--gpus: GPU 9: found no such index; allowed: 0 to 3"),
    ],
)
def test_a_bad_command_line_ends_in_one_line(
    refused: Go, settings_file: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "list.json").write_text("[]")
    files = {"SETTINGS": str(settings_file), "LIST": str(tmp_path / "list.json")}
    line = refused(*(files.get(option, option) for option in options), "--folder", str(tmp_path))
    assert line.startswith("voltana-clocks: error: ")
    assert message in line


def test_the_benchmark_measures(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--commands", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(float(number) > 0.0 for line in lines[2:] for number in line.split()[-8:])

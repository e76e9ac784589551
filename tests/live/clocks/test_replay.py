"""A recording says what was read, and a playback says it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError, GpuInfo, Reading
from voltana.live.clocks.record import record
from voltana.live.clocks.replay import ReplayDriver, ReplayGpu
from voltana.live.clocks.trace import TraceWriter, read_trace

INFO = GpuInfo(0, "GPU-a", "A100", (210, 1005, 1410), 400.0, (100.0, 400.0))
GPU_LINE = '# gpu {"gpu":0,"uuid":"GPU-a","name":"A100"}\n'
HEADER = "time_s,gpu,power_w,energy_j,clock_mhz\n"
ROWS = [Reading(0, 0.0, 80.0, 10.0, 1410), Reading(0, 1.0, 200.0, 90.0, 1005), Reading(0, 2.0, None, 290.0, None)]

meters = st.none() | st.floats(0.0, 1e6).map(lambda value: float(f"{value:.12g}"))
steps_ms = st.integers(0, 5000)


@given(st.lists(st.tuples(steps_ms, st.sampled_from([0, 3]), meters, meters, st.none() | st.integers(0, 2000))))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    infos = [INFO, GpuInfo(3, "GPU-b", "a, strange\nname")]
    elapsed_ms, written = 0, [Reading(0, 0.0, 1.0, 2.0, 3), Reading(3, 0.0, 1.0, 2.0, 3)]
    for step_ms, gpu, power_w, energy_j, clock_mhz in rows:
        elapsed_ms += step_ms
        written.append(Reading(gpu, elapsed_ms / 1000, power_w, energy_j, clock_mhz))
    with TraceWriter(path, infos) as trace:
        for row in written:
            trace.write(row)
    read = read_trace(path)
    assert {gpu: info for gpu, (info, _) in read.items()} == {0: infos[0], 3: infos[1]}
    for gpu, (_, readings) in read.items():
        assert readings == [row for row in written if row.gpu == gpu]


def test_playback_follows_the_recording() -> None:
    now_s = [50.0]
    gpu = ReplayGpu(INFO, ROWS, now=lambda: now_s[0])
    assert (gpu.power_w(), gpu.energy_j(), gpu.clock_mhz()) == (80.0, 10.0, 1410)
    now_s[0] = 51.5
    assert (gpu.power_w(), gpu.energy_j(), gpu.clock_mhz()) == (200.0, 190.0, 1005)
    now_s[0] = 52.0
    assert gpu.energy_j() == 290.0
    reading = gpu.read()
    assert (reading.power_w, reading.clock_mhz) == (None, None)
    now_s[0] = 52.1
    with pytest.raises(DeviceError, match="ended after 2 s") as caught:
        gpu.energy_j()
    assert caught.value.fault == "ended"
    assert gpu.read().energy_j is None


def test_where_a_counter_started_again_its_energy_is_unknown() -> None:
    """Between the rows nothing is made up that falls, or that stands still."""
    rows = [Reading(0, float(second), 80.0, energy_j, 1410) for second, energy_j in enumerate((100.0, 5.0, 25.0))]
    now = [0.0]
    gpu = ReplayGpu(INFO, rows, now=lambda: now[0])
    for now[0], energy_j in ((0.0, None), (0.5, None), (1.0, 5.0), (1.5, 15.0)):
        assert gpu.read().energy_j == energy_j


def test_commands_are_checked_and_change_nothing() -> None:
    gpu = ReplayGpu(INFO, ROWS, now=lambda: 0.0)
    gpu.lock_clock(1005)
    gpu.set_power_limit(200.0)
    assert (gpu.clock_mhz(), gpu.power_limit_w(), gpu.power_w()) == (1410, 200.0, 80.0)
    gpu.reset_power_limit()
    assert gpu.power_limit_w() == 400.0
    with pytest.raises(DeviceError, match="found 1006 MHz"):
        gpu.lock_clock(1006)
    with pytest.raises(DeviceError, match="found 50 W"):
        gpu.set_power_limit(50.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: found no line '# gpu"),
        ("# gpu {}\n", ":1: bad description of a GPU"),
        (GPU_LINE + "time,gpu\n", ":2: found columns 'time,gpu'; allowed: time_s"),
        (GPU_LINE + HEADER, "found no row of gpu 0"),
        (GPU_LINE + HEADER + "0,0,1,2\n", ":3: found '0,0,1,2'; allowed: numbers"),
        (GPU_LINE + HEADER + "0,0,nan,2,3\n", ":3: found '0,0,nan,2,3'"),
        (GPU_LINE + HEADER + "0,0,-1,2,3\n", ":3: found '0,0,-1,2,3'"),
        (GPU_LINE + HEADER + "0,0,1,2,inf\n", ":3: found"),
        (GPU_LINE + HEADER + "0,7,1,2,3\n", ":3: found gpu 7; allowed: 0"),
        (GPU_LINE + HEADER + "1,0,1,2,3\n0.5,0,1,2,3\n", ":4: found time_s 0.5 after 1"),
        (GPU_LINE + HEADER + "nan,0,1,2,3\n", ":3: found time_s nan"),
    ],
)
def test_a_bad_recording_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        ReplayDriver(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_no_recording_at_all(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        ReplayDriver(path)


def test_record_an_owner_and_play_it_back(start: Any, connect: Any, tmp_path: Path) -> None:
    clocks = connect(start().socket)
    path = tmp_path / "trace.csv"
    rows = record(clocks, [1, 2], path, duration_s=0.2, interval_s=0.05)
    assert rows >= 6
    driver = ReplayDriver(path)
    assert driver.gpus() == (1, 2)
    gpu = driver.open(2)
    assert gpu.info == clocks.gpus[2]
    assert gpu.read().clock_mhz == 1410
    assert gpu.power_w() == pytest.approx(83, rel=0.1)
    with pytest.raises(DeviceError, match="GPU 0: not in the recording; allowed: 1, 2"):
        driver.open(0)

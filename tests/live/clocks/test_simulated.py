"""Simulated GPUs obey the plant, their delays, and the limits of a sensor."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError, DeviceGroup
from voltana.live.clocks.simulated import LEAST_CAP, SENSOR_GAIN_ERROR, Load, SimulatedDriver, SimulatedGpu
from voltana.sim.plant import Plant
from voltana.sim.plant.build import plant_of

loads = st.one_of(
    st.just(Load()),
    st.builds(Load, st.just("decode"), st.integers(1, 300), st.integers(1, 200_000)),
    st.integers(1, 8000).map(lambda tokens: Load("prefill", 1, tokens, tokens * (tokens + 1) / 2)),
)
clocks = st.sampled_from([210, 600, 1005, 1200, 1410])


class FakeTime:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def gpu_at(time: FakeTime, plant: Plant, **options: Any) -> SimulatedGpu:
    return SimulatedGpu(0, plant, now=time.now, sleep=time.sleep, **options)


def plant_power_w(plant: Plant, load: Load, mhz: int) -> float:
    """What one GPU draws, asked of the plant itself."""
    match load.phase:
        case "decode":
            group_w = plant.decode(load.requests, load.tokens, mhz).power_w
        case "prefill":
            group_w = plant.prefill(load.requests, load.tokens, load.token_pairs, mhz).power_w
        case _:
            group_w = plant.idle_power_w(mhz)
    return group_w / plant.model.tp


@settings(max_examples=40)
@given(st.lists(st.tuples(loads, st.none() | clocks, st.floats(0.0, 2.0)), max_size=12))
def test_energy_is_the_integral_of_power(plant: Plant, history: list[tuple[Load, int | None, float]]) -> None:
    time = FakeTime()
    gpu = gpu_at(time, plant, block_s=0.003, settle_s=0.020)
    energy_j, load, mhz = 0.0, Load(), 1410
    for next_load, command, pause_s in history:
        gpu.feed(next_load)
        load = next_load
        if command is not None:
            gpu.lock_clock(command)
            energy_j += 0.003 * plant_power_w(plant, load, mhz)
            time.sleep(0.020)
            energy_j += 0.020 * plant_power_w(plant, load, mhz)
            mhz = command
        time.sleep(pause_s)
        energy_j += pause_s * plant_power_w(plant, load, mhz)
    assert gpu.energy_j() == pytest.approx(energy_j, abs=0.002)


def test_a_clock_blocks_then_settles(plant: Plant) -> None:
    time = FakeTime()
    gpu = gpu_at(time, plant, block_s=0.003, settle_s=0.020)
    gpu.feed(Load("decode", 8, 4000))
    before_s = time.now()
    gpu.lock_clock(1005)
    assert time.now() - before_s == pytest.approx(0.003)
    time.sleep(0.0199)
    assert gpu.clock_mhz() == 1410
    time.sleep(0.0002)
    assert gpu.clock_mhz() == 1005
    gpu.reset_clock()
    time.sleep(0.021)
    assert gpu.clock_mhz() == 1410


def test_reading_late_does_not_change_the_energy(plant: Plant) -> None:
    """A clock comes into force when it does, not when somebody looks."""
    energies = []
    for look in (True, False):
        time = FakeTime()
        gpu = gpu_at(time, plant)
        gpu.feed(Load("decode", 64, 60_000))
        gpu.lock_clock(600)
        for _ in range(100):
            time.sleep(0.001)
            if look:
                gpu.energy_j()
        energies.append(gpu.energy_j())
    assert energies[0] == pytest.approx(energies[1], abs=0.002)


def test_the_sensor_publishes_every_100_ms(plant: Plant) -> None:
    time = FakeTime()
    gpu = gpu_at(time, plant)
    changes = []
    for step in range(1000):
        gpu.feed(Load("decode", 1 + step % 200, 1000 * (1 + step % 200)))
        before_w = gpu.power_w()
        time.sleep(0.001)
        if gpu.power_w() != before_w:
            changes.append(time.now())
    gaps_s = [after - before for before, after in pairwise(changes)]
    assert 9 <= len(changes) <= 10
    assert all(gap == pytest.approx(0.1, abs=0.0011) for gap in gaps_s)


def test_the_sensor_sees_a_quarter_of_the_time(plant: Plant) -> None:
    """A load that pulses with the sensor's own period looks constant to it, and wrong; the counter is right."""
    time = FakeTime()
    gpu = gpu_at(time, plant, seed=3)
    idle_w = plant.idle_power_w(1410)
    busy_w = plant_power_w(plant, Load("decode", 256, 200_000), 1410)
    seen_w, start_j = [], gpu.energy_j()
    for _ in range(20):
        for load, pause_s in ((Load("decode", 256, 200_000), 0.05), (Load(), 0.05)):
            gpu.feed(load)
            time.sleep(pause_s)
        seen_w.append(gpu.power_w())
    assert max(seen_w[1:]) == pytest.approx(min(seen_w[1:]))
    assert (gpu.energy_j() - start_j) / 2.0 == pytest.approx((idle_w + busy_w) / 2, rel=1e-4)


def test_the_sensor_sees_what_the_gpus_file_says(parts: dict[str, Any]) -> None:
    """A mean of a second is halfway up half a second after a step of the power."""
    time = FakeTime()
    plant = plant_of({**parts["gpu"], "sensor_window_s": 1.0}, parts["model"], parts["engine"])
    gpu = gpu_at(time, plant)
    assert gpu.info.power_meter == "simulated, mean of 1000 ms"
    idle_w, busy_w = gpu.power_w(), gpu._gain * plant_power_w(plant, Load("decode", 256, 200_000), 1410)
    gpu.feed(Load("decode", 256, 200_000))
    time.sleep(0.5)
    assert gpu.power_w() == pytest.approx((idle_w + busy_w) / 2, abs=0.1 * (busy_w - idle_w))
    time.sleep(0.6)
    assert gpu.power_w() == pytest.approx(busy_w)


def test_the_sensor_has_a_gain_of_its_own(plant: Plant) -> None:
    truth_w = plant.idle_power_w(1410)
    gains = [gpu_at(FakeTime(), plant, seed=seed).power_w() / truth_w for seed in range(40)]
    assert gains == [gpu_at(FakeTime(), plant, seed=seed).power_w() / truth_w for seed in range(40)]
    assert max(abs(gain - 1.0) for gain in gains) <= SENSOR_GAIN_ERROR + 1e-9
    assert max(gains) > 1.02
    assert min(gains) < 0.98


@settings(max_examples=60)
@given(loads, clocks, st.floats(LEAST_CAP, 1.0))
def test_a_cap_is_kept_at_the_highest_clock_that_can(plant: Plant, load: Load, mhz: int, share: float) -> None:
    time = FakeTime()
    gpu = gpu_at(time, plant)
    cap_w = share * plant.gpu.power_limit_w
    gpu.set_power_limit(cap_w)
    gpu.lock_clock(mhz)
    gpu.feed(load)
    time.sleep(1.0)
    start_j = gpu.energy_j()
    time.sleep(1.0)
    drawn_w = gpu.energy_j() - start_j
    powers_w = {clock: plant_power_w(plant, load, clock) for clock in gpu.info.clocks_mhz if clock <= mhz}
    allowed = [clock for clock, power_w in powers_w.items() if power_w <= cap_w * (1 + 1e-9)]
    best = max(allowed, default=gpu.info.clocks_mhz[0])
    assert drawn_w == pytest.approx(plant_power_w(plant, load, best), abs=0.01)
    gpu.set_power_limit(plant.gpu.power_limit_w)
    start_j = gpu.energy_j()
    time.sleep(1.0)
    assert gpu.energy_j() - start_j == pytest.approx(plant_power_w(plant, load, mhz), abs=0.01)


def test_the_gpus_of_a_group_share_its_power(plant_tp2: Plant) -> None:
    time = FakeTime()
    pair = [SimulatedGpu(gpu, plant_tp2, now=time.now, sleep=time.sleep) for gpu in (0, 1)]
    group = DeviceGroup(pair)
    group.lock_clock(1005)
    for gpu in pair:
        gpu.feed(Load("decode", 32, 30_000))
    time.sleep(0.1)
    start_j = group.energy_j()
    time.sleep(1.0)
    assert group.energy_j() - start_j == pytest.approx(plant_tp2.decode(32, 30_000, 1005).power_w, abs=0.01)
    assert group.clocks_mhz() == plant_tp2.gpu.clocks()


@pytest.mark.parametrize("mhz", [0, 211, 1425])
def test_only_supported_clocks(plant: Plant, mhz: int) -> None:
    with pytest.raises(DeviceError, match=f"found {mhz} MHz; allowed") as caught:
        gpu_at(FakeTime(), plant).lock_clock(mhz)
    assert caught.value.fault == "unsupported"


@pytest.mark.parametrize("watts", [1.0, 99.9, 400.1, math.inf, math.nan])
def test_only_caps_within_range(plant: Plant, watts: float) -> None:
    with pytest.raises(DeviceError, match="allowed: 100 to 400 W"):
        gpu_at(FakeTime(), plant).set_power_limit(watts)


def test_a_host_from_plain_values(parts: dict[str, Any]) -> None:
    driver = SimulatedDriver.of({**parts, "gpus": 2})
    assert driver.gpus() == (0, 1)
    assert driver.open(1) is driver.open(1)
    assert driver.find(driver.open(1).info.uuid) is driver.open(1)
    with pytest.raises(DeviceError, match="GPU 2: found no such index; allowed: 0 to 1"):
        driver.open(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": 0}, "gpus: found 0, allowed: "),
        ({"gpus": "two"}, "gpus: found 'two'"),
        ({"block_s": -1.0}, "block_s: found -1.0"),
        ({"settle": 1.0}, "settle: unknown key; allowed: gpu, "),
        ({"engine": {"warp": 9}}, "engine.warp: unknown key"),
    ],
)
def test_a_bad_setting_is_named(parts: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimulatedDriver.of({**parts, "gpus": 2, **change})
    with pytest.raises(UserError, match="gpus: missing"):
        SimulatedDriver.of(parts)

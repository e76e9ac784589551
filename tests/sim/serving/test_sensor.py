"""What a policy may read of power: late, of a part of the time, and off by a constant factor."""

import pytest
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from voltana.app.serving import Sensor
from voltana.section import parse
from voltana.sim.plant import GpuSpec
from voltana.sim.serving.sensor import PowerSensors, gain


def test_a_reading_is_the_mean_over_the_window_alone() -> None:
    sensors = PowerSensors(Sensor(name="", period_s=0.1, window_s=0.025, error=0.0), ["a", "b"], 0)
    assert sensors.readings_w == [None, None] and sensors.total_w is None
    sensors.open_window([100.0, 7.0])
    sensors.publish([110.0, 8.0])
    assert sensors.readings_w == pytest.approx([400.0, 40.0])
    assert sensors.total_w == pytest.approx(440.0)


def test_a_window_of_several_periods_slides() -> None:
    """As a mean of a second that is published ten times a second; at first it is of the time there was."""
    sensors = PowerSensors(Sensor(name="", period_s=0.1, window_s=0.3, error=0.0), ["a"], 0)
    readings_w, used_j = [], 0.0
    for power_w in (100.0, 200.0, 300.0, 400.0, 500.0):
        sensors.open_window([used_j])
        used_j += 0.1 * power_w
        sensors.publish([used_j])
        readings_w.append(sensors.total_w)
    assert readings_w == pytest.approx([100.0, 150.0, 200.0, 300.0, 400.0])
    with pytest.raises(ValueError, match="a whole number of times that"):
        Sensor(name="", period_s=0.1, window_s=0.25, error=0.0)


@pytest.mark.parametrize(
    ("overrides", "window_s"),
    [(["+sensor=nvml"], 0.025), (["+sensor=nvml", "+gpu.sensor_window_s=0.1"], 0.1), (["+sensor=nvml_average"], 1.0)],
)
def test_the_sensor_follows_the_gpu(overrides: list[str], window_s: float) -> None:
    """One line in a GPU's file is enough; with none it is that of an A100."""
    with initialize_config_module("voltana.conf", version_base="1.3"):
        values = OmegaConf.to_container(compose(overrides=["+gpu=a100_sxm4_80g", *overrides]), resolve=True)
    assert isinstance(values, dict)
    sensor = parse(Sensor, values["sensor"])
    assert sensor == Sensor(name=sensor.name, period_s=0.1, window_s=window_s, error=0.05)
    assert GpuSpec(**values["gpu"]).sensor_window_s == values["gpu"].get("sensor_window_s")


@given(error=st.floats(0, 0.5), seed=st.integers(0, 100))
def test_every_sensor_errs_by_a_factor_of_its_own_within_the_stated(error: float, seed: int) -> None:
    sensor = Sensor(name="", period_s=0.1, window_s=0.1, error=error)
    gains = [gain(sensor, f"decode-{i}", seed) for i in range(20)]
    assert all(1 - error <= each <= 1 + error for each in gains)
    assert error < 1e-9 or len(set(gains)) == 20
    assert gains[3] == gain(sensor, "decode-3", seed)

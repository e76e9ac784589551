"""What a policy may read of power: late, of a part of the time, and off by a constant factor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.app.serving import Sensor
from voltana.sim.serving.sensor import PowerSensors, gain


def test_a_reading_is_the_mean_over_the_window_alone() -> None:
    sensors = PowerSensors(Sensor(name="", period_s=0.1, window_s=0.025, error=0.0), ["a", "b"], 0)
    assert sensors.readings_w == [None, None] and sensors.total_w is None
    sensors.open_window([100.0, 7.0])
    sensors.publish([110.0, 8.0])
    assert sensors.readings_w == pytest.approx([400.0, 40.0])
    assert sensors.total_w == pytest.approx(440.0)


@given(error=st.floats(0, 0.5), seed=st.integers(0, 100))
def test_every_sensor_errs_by_a_factor_of_its_own_within_the_stated(error: float, seed: int) -> None:
    sensor = Sensor(name="", period_s=0.1, window_s=0.1, error=error)
    gains = [gain(sensor, f"decode-{i}", seed) for i in range(20)]
    assert all(1 - error <= each <= 1 + error for each in gains)
    assert error < 1e-9 or len(set(gains)) == 20
    assert gains[3] == gain(sensor, "decode-3", seed)

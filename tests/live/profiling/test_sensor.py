"""Energy and clocks of a GPU, with a stand-in."""

import os
import signal
import time
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.profiling.torch.sensor import NoPrivilegeError, Watch, check_clocks, describe, find_gpu, locked


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.001)


@pytest.mark.parametrize("power_w", [70.0, 400.0])
def test_power_is_taken_between_ticks(fake_gpu: Any, power_w: float) -> None:
    with Watch(fake_gpu(power_w)) as watch:
        busy(60 * fake_gpu.TICK_S)
    assert watch.power_w == pytest.approx(power_w, rel=0.05)
    assert watch.clock_mhz == 1395


def test_a_window_without_two_ticks_has_no_power(fake_gpu: Any) -> None:
    with Watch(fake_gpu(counter=False)) as watch:
        busy(0.05)
    assert watch.power_w is None and watch.clock_mhz == 1395


def test_the_clock_is_given_back_whatever_happens(fake_gpu: Any) -> None:
    gpu = fake_gpu()
    with pytest.raises(ZeroDivisionError), locked(gpu, 1005):
        assert gpu.locked_mhz == 1005
        raise ZeroDivisionError
    assert gpu.calls == ["lock 1005", "reset"]


def test_a_request_to_end_gives_the_clock_back(fake_gpu: Any) -> None:
    gpu, before = fake_gpu(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), locked(gpu, 1005):
        os.kill(os.getpid(), signal.SIGTERM)
        busy(1.0)
    assert gpu.locked_mhz is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_the_privilege_nothing_is_reset(fake_gpu: Any) -> None:
    gpu = fake_gpu(privileged=False)
    with pytest.raises(NoPrivilegeError), locked(gpu, 1005):
        pass
    assert gpu.calls == []


def test_a_clock_the_gpu_lacks_is_refused(fake_gpu: Any) -> None:
    with pytest.raises(UserError, match=r"profile\.clocks_mhz: found 1000, allowed: 210 to 1410 MHz in steps of 15"):
        check_clocks(fake_gpu(), [1005, 1000])


def test_the_gpu_describes_itself(fake_gpu: Any) -> None:
    about = describe(fake_gpu())
    assert about["power_limit_w"] == 400.0
    assert about["clocks_mhz"][:2] == [210, 225]


def test_no_nvml_is_one_line() -> None:
    with pytest.raises(UserError, match="NVML: "):
        find_gpu("GPU-none")

import simpy

from sim.actuator import Actuator
from sim.limits import Actuation

CLOCKS = range(210, 1411, 15)


class Bench:
    """Actuators on one host, with a log of clocks coming into force."""

    def __init__(self, block_s: float = 0.003, settle_s: float = 0.010, gpus: int = 1, count: int = 1) -> None:
        self.env = simpy.Environment()
        self.log: list[tuple[float, int, int]] = []
        host = simpy.Resource(self.env)
        self.actuators = [
            Actuator(self.env, host, Actuation(block_s, settle_s), gpus, CLOCKS, self._note(i)) for i in range(count)
        ]
        for actuator in self.actuators:
            actuator.start_at(1410)
        self.log.clear()

    def _note(self, index: int):  # type: ignore[no-untyped-def]
        return lambda clock: self.log.append((round(self.env.now, 9), index, clock))

    def at(self, time_s: float, clock_mhz: int, index: int = 0) -> None:
        self.env.timeout(time_s).callbacks.append(lambda _: self.actuators[index].command(clock_mhz))


def test_a_clock_is_in_force_after_the_call_and_the_settling() -> None:
    bench = Bench()
    bench.at(1.0, 1005)
    bench.env.run()
    assert bench.log == [(1.013, 0, 1005)]


def test_a_call_is_made_for_every_gpu_of_the_group() -> None:
    bench = Bench(gpus=4)
    bench.at(1.0, 1005)
    bench.env.run()
    assert bench.log == [(1.022, 0, 1005)]


def test_calls_on_one_host_run_one_after_another() -> None:
    bench = Bench(count=3)
    for index in range(3):
        bench.at(1.0, 1005, index)
    bench.env.run()
    assert bench.log == [(1.013, 0, 1005), (1.016, 1, 1005), (1.019, 2, 1005)]


def test_while_a_call_is_under_way_only_the_newest_command_waits() -> None:
    bench = Bench()
    for time, clock in ((1.0, 1005), (1.001, 1095), (1.002, 1200)):
        bench.at(time, clock)
    bench.env.run()
    assert bench.log == [(1.013, 0, 1005), (1.016, 0, 1200)]
    assert bench.actuators[0].changes == 3


def test_the_same_command_twice_is_one_call() -> None:
    bench = Bench()
    bench.at(1.0, 1005)
    bench.at(2.0, 1005)
    bench.env.run()
    assert bench.actuators[0].changes == 1


def test_no_delay_means_the_same_instant() -> None:
    bench = Bench(block_s=0.0, settle_s=0.0)
    bench.at(1.0, 1005)
    bench.env.run()
    assert bench.log == [(1.0, 0, 1005)]


def test_a_clock_the_gpu_lacks_is_refused() -> None:
    bench = Bench()
    try:
        bench.actuators[0].command(1006)
    except ValueError as error:
        assert "1006" in str(error)
    else:
        raise AssertionError("1006 MHz was accepted")

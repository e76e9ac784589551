import simpy

from voltana.app.serving import Actuation
from voltana.sim.reference.actuator import Actuator
from voltana.sim.serving.limits import Setting
from voltana.state import Decision


class Bench:
    """Actuators on one host, with a log of clocks coming into force."""

    def __init__(self, block_s: float = 0.003, settle_s: float = 0.010, gpus: int = 1, count: int = 1) -> None:
        self.env = simpy.Environment()
        self.log: list[tuple[float, int, int]] = []
        delays = Actuation(name="", block_s=block_s, settle_s=settle_s)
        host = simpy.Resource(self.env)
        self.actuators = [Actuator(self.env, host, delays, gpus, self._note(index)) for index in range(count)]
        for actuator in self.actuators:
            actuator.start_at(Decision(1410))
        self.log.clear()

    def _note(self, index: int):  # type: ignore[no-untyped-def]
        def note(setting: Setting) -> None:
            self.log.append((round(self.env.now, 9), index, setting.clock_mhz))
            self.cap_w = setting.power_cap_w

        return note

    def at(self, time_s: float, clock_mhz: int, index: int = 0, cap_w: float | None = None) -> None:
        decision = Decision(clock_mhz, power_cap_w=cap_w)
        self.env.timeout(time_s).callbacks.append(lambda _: self.actuators[index].command(decision))


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


def test_a_power_cap_takes_the_same_way() -> None:
    bench = Bench()
    bench.at(1.0, 1410, cap_w=200.0)
    bench.env.run()
    assert bench.log == [(1.013, 0, 1410)]
    assert bench.cap_w == 200.0
    assert bench.actuators[0].changes == 0, "no change of the clock"


def test_clock_and_cap_together_are_two_calls() -> None:
    bench = Bench()
    bench.at(1.0, 1005, cap_w=200.0)
    bench.env.run()
    assert bench.log == [(1.016, 0, 1005)]


def test_at_once_means_without_calls() -> None:
    bench = Bench()
    bench.actuators[0].act_at_once(Decision(1005))
    assert bench.log == [(0.0, 0, 1005)]

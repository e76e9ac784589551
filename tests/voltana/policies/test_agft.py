"""AGFT on a toy GPU whose best clock is known, and its rules one by one."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.agft import Agft, Arm, Standardiser
from voltana.policies.build import shipped
from voltana.state import LoadSnapshot, Phase, Slo

CLOCKS = tuple(range(210, 1411, 15))
SLO = Slo(ttft_s=0.6, itl_s=0.06)
LOAD = LoadSnapshot(0.0, 1410, 40, 9000, 0, 0, 0.0, 0.0, 0, 0, 0, 0.0, 200.0)


def agft(phase: Phase = "decode", seed: int = 1, **parameters: Any) -> Agft:
    return Agft(
        phase,
        SLO,
        CLOCKS,
        100_000,
        seed,
        **shipped("frequency/agft", **{"min_clock_mhz": 1005, "step_mhz": 135, "cycle_s": 0.3, **parameters}),
    )


class Toy:
    """Iterations of 20 ms (or as said) at a power that depends on the clock of the last decision."""

    def __init__(self, controller: Agft, power_w: dict[int, float], latency_s: float = 0.02) -> None:
        self.controller, self.power_w, self.latency_s = controller, power_w, latency_s
        self.load, self.clocks = LOAD, list[int]()

    def run(self, iterations: int) -> list[int]:
        for _ in range(iterations):
            clock = self.controller.decide(self.load).clock_mhz
            self.clocks.append(clock)
            self.load = self.load._replace(
                time_s=self.load.time_s + self.latency_s,
                clock_mhz=clock,
                iterations=self.load.iterations + 1,
                busy_s=self.load.busy_s + self.latency_s,
                power_w=self.power_w[clock],
            )
        return self.clocks


FLAT = {1005: 200.0, 1140: 200.0, 1275: 200.0, 1410: 200.0}
FRUGAL_1140 = {1005: 250.0, 1140: 150.0, 1275: 250.0, 1410: 300.0}


def test_the_baseline_is_taken_at_the_highest_clock() -> None:
    clocks = Toy(agft(baseline_rounds=3), FLAT).run(46)  # 15 iterations a cycle
    assert set(clocks[:45]) == {1410}


def test_the_clock_of_least_energy_delay_product_wins() -> None:
    clocks = Toy(agft(), FRUGAL_1140).run(6000)
    assert Counter(clocks[-1500:]).most_common(1)[0] == (1140, 1500)


def test_every_clock_is_explored_first() -> None:
    assert set(Toy(agft(), FRUGAL_1140).run(1000)) == set(FRUGAL_1140)


def test_clocks_change_only_between_cycles() -> None:
    clocks = Toy(agft(), FRUGAL_1140).run(900)
    changes = [i for i in range(1, len(clocks)) if clocks[i] != clocks[i - 1]]
    assert changes
    assert all(i % 15 == 0 for i in changes)


def test_clocks_are_tried_from_the_highest_down_first() -> None:
    clocks = Toy(agft(baseline_rounds=1), FRUGAL_1140).run(6 * 15)[::15]
    assert clocks[1:6] == [1410, 1410, 1275, 1140, 1005]


def test_a_clock_that_is_extremely_bad_is_dropped_at_once() -> None:
    even = {"exploration": 1e6, "exploration_decay": 0}
    controller = agft(**even)
    Toy(controller, {1005: 600.0, 1140: 150.0, 1275: 600.0, 1410: 300.0}).run(800)
    assert set(controller.arms) == {1140, 1410}
    late = agft(extreme_rounds=2, **even)
    Toy(late, {1005: 600.0, 1140: 150.0, 1275: 600.0, 1410: 300.0}).run(800)
    assert set(late.arms) == set(FLAT)


def test_a_clock_far_above_the_spread_of_all_is_pruned_and_two_stay() -> None:
    power_w = dict.fromkeys(CLOCKS, 200.0) | {1005: 260.0}
    controller = agft(step_mhz=15, prune_tries=1, exploration=1e6, exploration_decay=0, extreme_rounds=0)
    Toy(controller, power_w).run(15 * 60)
    assert set(controller.arms) == {clock for clock in CLOCKS if clock > 1005}
    few = agft(prune_tries=1, prune_spread=0.1, extreme_rounds=0)
    Toy(few, {1005: 600.0, 1140: 150.0, 1275: 500.0, 1410: 300.0}).run(3000)
    assert len(few.arms) == 2 and 1140 in few.arms


def test_a_cycle_that_broke_the_objective_is_followed_by_the_highest_clock() -> None:
    assert set(Toy(agft(), FLAT, latency_s=0.07).run(400)) == {1410}
    assert set(Toy(agft(slo_aware=False), FLAT, latency_s=0.07).run(400)) == set(FLAT)


def test_prefill_delay_counts_the_wait() -> None:
    toy = Toy(agft("prefill"), FLAT, latency_s=0.1)
    toy.load = LOAD._replace(longest_wait_s=0.55)  # 0.65 s in all
    assert set(toy.run(200)) == {1410}


def test_the_seed_decides_and_repeats() -> None:
    runs = [Toy(agft(seed=seed), FLAT).run(3000) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_without_power_readings_nothing_is_learned() -> None:
    controller = agft()
    for step in range(100):
        load = LOAD._replace(time_s=step * 0.1, iterations=step, busy_s=step * 0.1, power_w=None)
        assert controller.decide(load).clock_mhz == 1410


def test_idle_for_a_cycle_drops_to_the_lowest_clock_of_the_gpu() -> None:
    idle = LOAD._replace(batch_size=0, batch_tokens=0)
    assert agft().decide(idle._replace(idle_s=math.inf)).clock_mhz == 1410
    asked = agft().decide(idle._replace(idle_s=0.1, clock_mhz=1140))
    assert (asked.clock_mhz, asked.ask_when_idle_s) == (1140, 0.3)
    assert agft().decide(idle._replace(idle_s=0.3, clock_mhz=1140)).clock_mhz == 210


contexts = st.lists(st.lists(st.floats(-3, 3), min_size=8, max_size=8).map(np.array), min_size=1, max_size=12)


@given(contexts, st.floats(-2, 2))
def test_an_arm_is_ridge_regression(seen: list[np.ndarray[Any, Any]], reward: float) -> None:
    arm = Arm(5.0)
    for context in seen:
        arm.learn(context, reward, 3.0)
    a = 5.0 * np.eye(8) + sum(np.outer(x, x) for x in seen)
    theta = np.linalg.solve(a, reward * sum(seen))
    x = seen[0]
    width = math.sqrt(x @ np.linalg.solve(a, x))
    assert arm.score(x, 2.0) == pytest.approx(theta @ x + 2.0 * width, rel=1e-6, abs=1e-9)
    assert (arm.mean_reward, arm.mean_edp) == (pytest.approx(reward), pytest.approx(3.0))


@given(st.lists(st.lists(st.floats(0, 1e4), min_size=7, max_size=7), min_size=2, max_size=20))
def test_features_are_standardised_and_clipped(rows: list[list[float]]) -> None:
    scaler = Standardiser()
    for row in rows:
        scaled = scaler.scale(np.array(row))
    table = np.array(rows)
    deviation = table.std(axis=0, ddof=1)
    clear = deviation > 1e-6
    expected = np.clip((table[-1] - table.mean(axis=0))[clear] / deviation[clear], -3, 3)
    assert scaled[:-1][clear] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert scaled[-1] == 1.0
    assert np.abs(scaled).max() <= 3


@pytest.mark.parametrize(
    "parameters", [{"min_clock_mhz": 999}, {"cycle_s": 0}, {"prune_spread": 0}, {"exploration": -1}]
)
def test_bad_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(parameters))):
        agft(**parameters)

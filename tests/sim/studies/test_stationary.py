"""No policy in a long steady run uses less than the stationary optimum, which is the best of what it looks at."""

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.record import SUMMARY, RunRecord
from voltana.section import parse
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants, build_plant
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.config import SimConfig
from voltana.sim.run.worker import run_job
from voltana.sim.studies.recorded import Cluster, Requests
from voltana.sim.studies.stationary import KEY, _cheapest_split, main, optimum, optimum_of
from voltana.state import Slo

Run = Callable[..., RunRecord]
CHANCE = 0.02
"""What a run of a minute may be below the optimum of its mean load, since load and lengths wander about theirs."""
SIZE = Cluster(2, 2, 16_384, 1024, 450_000)
LOOSE = Slo(0.78, 0.078)


@cache
def plant() -> Plant:
    return build_plant(parse(SimConfig, compose_sim()))


def flow(per_s: float, count: int = 50, inputs: int = 200, outputs: int = 150) -> Requests:
    """Requests that come one by one."""
    return Requests(np.arange(count) / per_s, np.full(count, inputs), np.full(count, outputs))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["static_max", "voltana", "voltana_next"])
def test_no_policy_uses_less(run: Run, policy: str) -> None:
    record = run(f"policy={policy}", "rps=30", "requests=null", "duration_s=60")
    assert record.summary["joint_attainment"] > 0.98
    found = optimum_of(record)
    assert found is not None
    assert found[1] < record.summary["energy_j"]["total"] * (1 + CHANCE)


@pytest.mark.parametrize("per_s", [0.5, 20.0, 60.0])
def test_it_keeps_the_objectives_and_what_it_stands_at_is_the_plants(per_s: float) -> None:
    requests = flow(per_s)
    best = optimum(Plants(plant(), plant()), LOOSE, SIZE, requests)
    assert best is not None
    idle_w, at = plant().idle_power_w(210), best.prefill
    step = plant().prefill(at.requests, at.requests * 200, at.requests * 20_100, at.clock_mhz)
    assert (at.requests - 1) / per_s + step.duration_s <= LOOSE.ttft_s
    assert at.excess_j == pytest.approx((step.power_w - idle_w) * step.duration_s / at.requests)
    for place in best.decode:
        step = plant().decode(place.requests, place.requests * 275, place.clock_mhz)
        assert step.duration_s <= LOOSE.itl_s
        assert place.requests == 1 or place.requests / LOOSE.itl_s <= per_s * 149 * (1 + 1e-9)
        assert place.excess_j == pytest.approx((step.power_w - idle_w) * step.duration_s / place.requests, rel=0.01)
    assert best.idle_w == 4 * idle_w
    assert best.energy_j(requests, 10.0) == pytest.approx(
        40 * idle_w + 50 * best.prefill.excess_j + 50 * 149 * best.decode_j
    )


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([15.0, 40.0, 70.0]), st.sampled_from([1, 2, 3]), st.sampled_from([0.03, 0.05, 0.078]))
def test_more_room_never_costs_more(per_s: float, instances: int, itl_s: float) -> None:
    """Nor do more instances or a longer objective; a higher rate does."""

    def power_w(slo: Slo, size: Cluster, rate: float) -> float:
        best = optimum(Plants(plant(), plant()), slo, size, flow(rate))
        return np.inf if best is None else rate * (best.prefill.excess_j + 149 * best.decode_j)

    size, slo = SIZE._replace(decode_instances=instances), Slo(0.78, itl_s)
    here = power_w(slo, size, per_s)
    more = size._replace(decode_instances=instances + 1, prefill_instances=3)
    assert power_w(slo, more, per_s) <= here * (1 + 1e-9)
    assert power_w(Slo(1.0, 1.5 * itl_s), size, per_s) <= here * 1.01  # batches are looked for in steps
    assert power_w(slo, size, 1.5 * per_s) > here or here == np.inf


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=6), st.integers(1, 3))
def test_the_split_is_the_cheapest(prices: list[float], instances: int) -> None:
    costs, steps = np.array([0.0, *prices]), len(prices)
    split = _cheapest_split(costs, instances)
    assert split is not None and sum(split) == steps and len(split) <= instances
    ways = (way for way in product(range(steps + 1), repeat=instances) if sum(way) == steps)
    assert sum(costs[part] for part in split) == pytest.approx(min(sum(costs[part] for part in way) for way in ways))


def test_what_cannot_be_borne_has_none(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run("policy=static_max", "rps=900", "requests=200")
    assert optimum(Plants(plant(), plant()), LOOSE, SIZE, flow(900.0)) is None
    assert main([str(tmp_path)]) == 0
    assert "no stationary optimum: no clocks bear this rate" in capsys.readouterr().out
    assert json.loads((record.folder / SUMMARY).read_text())[KEY] is None


def test_nothing_to_decode_costs_nothing() -> None:
    best = optimum(Plants(plant(), plant()), LOOSE, SIZE, flow(10.0, outputs=1))
    assert best is not None and best.decode == () and best.decode_j == 0


def test_a_run_adds_it_itself_where_asked(tmp_path: Path) -> None:
    run_job(compose_sim("policy=static_max", "requests=20", "bound=both"), tmp_path)
    summary, found = RunRecord(tmp_path).summary, optimum_of(RunRecord(tmp_path))
    assert found is not None and summary[KEY] == pytest.approx(found[1])
    assert 0 < summary["energy_bound_j"] < summary["energy_j"]["total"]


@pytest.mark.parametrize("change", ["serving.latency_noise=0.1", "arrival=timestamps", "arrival=day", "bound=best"])
def test_what_has_none_is_refused(run: Run, change: str) -> None:
    with pytest.raises(UserError, match=r"bound: found '(stationary|best)', allowed: "):
        run("policy=static_max", "bound=stationary", change)


def test_a_run_without_a_rate_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("policy=static_max", "requests=1")
    assert main([str(tmp_path)]) == 2
    assert "found 1 completed requests at one time" in capsys.readouterr().err

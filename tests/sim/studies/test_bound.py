"""No run uses less than the bound, nor does a schedule that no policy could think of; and its parts are the plant's."""

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltana import conf
from voltana.errors import UserError
from voltana.record import SUMMARY, RunRecord
from voltana.section import parse
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants, build_plant
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import simulate
from voltana.sim.run.worker import run_job
from voltana.sim.studies.bound import (
    KEY,
    EnergyBound,
    add_to,
    bound_of,
    decode_costs,
    energy_bound,
    main,
    most_at_once,
    prefill_costs,
)
from voltana.sim.studies.recorded import Cluster, Misses, Requests
from voltana.state import Slo

Run = Callable[..., RunRecord]
POLICIES = sorted(path.stem for path in (Path(conf.__file__).parent / "policy").glob("*.yaml"))
ROUNDING = 1e-9
NO_LIMIT_W = 1e12
EAGER = ("serving.engine.cuda_graph=false", "++serving.engine.eager_launch_s=1e-5")


@cache
def plant_of(*overrides: str) -> Plant:
    return build_plant(parse(SimConfig, compose_sim(*overrides)))


@pytest.fixture(scope="module", name="plant")
def _plant() -> Plant:
    return plant_of()


def bounded(record: RunRecord) -> EnergyBound:
    """The bound of a run, which it keeps; so do the parts."""
    bound, used = bound_of(record), record.summary["energy_j"]
    assert 0 < bound.total_j <= used["total"] * (1 + ROUNDING)
    assert bound.prefill_j <= used["prefill"] and bound.decode_j <= used["decode"]
    return bound


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_uses_less(run: Run, policy: str) -> None:
    bounded(run(f"policy={policy}", "rps=40", "requests=100"))


CHOICES = st.fixed_dictionaries(
    {
        "policy.prefill_controller.clock_mhz": st.integers(14, 94).map(lambda n: 15 * n),
        "policy.decode_controller.clock_mhz": st.integers(14, 94).map(lambda n: 15 * n),
        "rps": st.sampled_from([1, 10, 60, 200]),
        "requests": st.integers(1, 60),
        "trace": st.sampled_from(["sharegpt", "lognormal"]),
        "slo.scale": st.sampled_from([0.2, 0.5, 1.0, 2.0]),
        "cluster.prefill_instances": st.integers(1, 3),
        "cluster.decode_instances": st.integers(1, 3),
        "serving.prefill.chunk_tokens": st.sampled_from(["null", 300]),
        "serving.decode.kv_tokens": st.sampled_from(["auto", 5000]),
        "serving.decode.max_requests": st.sampled_from([1024, 6]),
        "serving.prefill.max_tokens": st.just(1500),
        "seed": st.integers(0, 10_000),
    }
)
PLANTS = st.sampled_from([(), ("model=qwen3_32b",), EAGER])


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=CHOICES, plant=PLANTS)
def test_no_pair_of_clocks_uses_less(tmp_path: Path, choice: dict[str, Any], plant: tuple[str, ...]) -> None:
    overrides = [*plant, *(f"{key}={value}" for key, value in choice.items())]
    simulate(compose_sim("policy=static_max", "duration_s=null", *overrides), tmp_path, overwrite=True)
    bounded(RunRecord(tmp_path))


# Schedules by hand: everything is known in advance, every batch is as large as can be, nothing waits.

some_requests = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 40)), min_size=1, max_size=30)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    lengths=some_requests,
    clocks=st.lists(st.integers(14, 94).map(lambda n: 15 * n), min_size=1, max_size=5),
    cap_w=st.sampled_from([120.0, 250.0, NO_LIMIT_W]),
    slo=st.builds(Slo, st.floats(0.02, 2.0), st.floats(0.006, 0.1)),
)
def test_no_schedule_uses_less(
    plant: Plant, lengths: list[tuple[int, int]], clocks: list[int], cap_w: float, slo: Slo
) -> None:
    """All arrive at once, are prefilled in one batch and decoded together, each iteration at some clock or cap."""
    inputs, outputs = (np.array(column) for column in zip(*lengths, strict=True))
    pairs = float((inputs * (inputs + 1) / 2).sum())
    first = plant.prefill(len(inputs), int(inputs.sum()), pairs, clocks[0], cap_w)
    spent_j, now_s, ends_s = first.power_w * first.duration_s, first.duration_s, np.full(len(inputs), first.duration_s)
    for produced in range(1, outputs.max()):
        running = outputs > produced
        kv_tokens = int((inputs[running] + produced).sum())
        step = plant.decode(int(running.sum()), kv_tokens, clocks[produced % len(clocks)], cap_w)
        spent_j, now_s = spent_j + step.power_w * step.duration_s, now_s + step.duration_s
        ends_s[running] = now_s
    decoding_s = now_s - first.duration_s
    idle_w = plant.idle_power_w(plant.gpu.clock_min_mhz)
    spent_j += idle_w * (decoding_s + first.duration_s)
    itl_s = (ends_s - first.duration_s) / np.maximum(outputs - 1, 1)
    misses = Misses(len(inputs) * int(first.duration_s > slo.ttft_s), int((itl_s > slo.itl_s).sum()))
    requests = Requests(np.zeros(len(inputs)), inputs, outputs)
    bound = energy_bound(
        Plants(plant, plant), slo, Cluster(1, 1, 16384, 1024, plant.kv_capacity_tokens), requests, misses
    )
    assert bound.total_j <= spent_j * (1 + ROUNDING)


@pytest.mark.slow
def test_it_is_tight_where_a_best_schedule_is_known(plant: Plant) -> None:
    """Equal requests together, objectives far away, the last arrival later: the best single clock comes close."""
    n, inputs, outputs, last_s = 128, 300, 200, 120.0
    requests = Requests(np.append(np.zeros(n), last_s), np.append([inputs] * n, 1), np.append([outputs] * n, 1))
    cluster = Cluster(1, 1, n * inputs, 1024, plant.kv_capacity_tokens)
    idle_w = plant.idle_power_w(plant.gpu.clock_min_mhz)

    def spent_j(clock: int) -> float:
        steps = [plant.prefill(n, n * inputs, n * inputs * (inputs + 1) / 2, clock)]
        steps += [plant.decode(n, n * (inputs + k), clock) for k in range(1, outputs)]
        assert sum(step.duration_s for step in steps) < last_s
        steps.append(plant.prefill(1, 1, 1.0, 1410))
        end_s = last_s + steps[-1].duration_s
        return 2 * idle_w * end_s + sum(step.duration_s * (step.power_w - idle_w) for step in steps)

    bound = energy_bound(Plants(plant, plant), Slo(100.0, 10.0), cluster, requests, Misses(0, 0))
    best = min(map(spent_j, plant.gpu.clocks()))
    assert 0.99 * best < bound.total_j <= best
    excess_j = best - bound.idle_j
    assert 0.95 * excess_j < bound.prefill_j + bound.decode_j


@pytest.mark.slow
def test_a_tighter_objective_costs_and_a_miss_saves(plant: Plant) -> None:
    requests = Requests(np.linspace(0, 3, 200), np.full(200, 300), np.full(200, 150))
    cluster = Cluster(1, 1, 16384, 1024, plant.kv_capacity_tokens)

    def bound(itl_s: float, misses: int = 0) -> float:
        return energy_bound(Plants(plant, plant), Slo(0.6, itl_s), cluster, requests, Misses(misses, misses)).decode_j

    by_objective = [bound(itl_s) for itl_s in (0.1, 0.05, 0.03, 0.02, 0.015)]
    assert by_objective == sorted(by_objective) and by_objective[-1] > 1.2 * by_objective[0]
    by_misses = [bound(0.015, misses) for misses in (0, 20, 100, 200)]
    assert by_misses == sorted(by_misses, reverse=True) and by_misses[-1] < 0.9 * by_misses[0]


def test_nothing_completed_needs_nothing(plant: Plant) -> None:
    none = Requests(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert energy_bound(Plants(plant, plant), Slo(1, 1), Cluster(1, 1, 100, 10, 1000), none, Misses(0, 0)).total_j == 0


# The parts.


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("model=qwen3_32b",), EAGER])
@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 64), context=st.floats(0, 3000), index=st.integers(0, 80))
def test_decode_costs_are_those_of_the_plant(
    overrides: tuple[str, ...], batch: int, context: float, index: int
) -> None:
    """Exactly, but for launch gaps, which only add."""
    from voltana.sim.studies.bound import _at

    plant = plant_of(*overrides)
    clocks = plant.gpu.clocks()
    step = plant.decode(batch, round(batch * context), clocks[index], NO_LIMIT_W)
    excess_j = (step.power_w - plant.idle_power_w(clocks[0])) * step.duration_s
    at = np.full((64, 1), round(batch * context) / batch)
    seconds, joules = (float(_at(values, at)[batch - 1, index, 0]) for values in decode_costs(plant, 64))
    if overrides == EAGER:
        assert seconds <= step.duration_s * (1 + ROUNDING) and joules <= excess_j * (1 + ROUNDING)
    else:
        assert (seconds, joules) == pytest.approx((step.duration_s, excess_j), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("model=qwen3_32b",), EAGER])
@settings(max_examples=40, deadline=None)
@given(
    requests=st.integers(1, 300),
    tokens=st.integers(1, 2048),
    pairs_per_token=st.floats(0, 2000),
    index=st.integers(0, 80),
)
def test_prefill_costs_are_at_most_those_of_the_plant(
    overrides: tuple[str, ...], requests: int, tokens: int, pairs_per_token: float, index: int
) -> None:
    plant = plant_of(*overrides)
    clocks, costs = plant.gpu.clocks(), prefill_costs(plant, 2048)
    pairs = pairs_per_token * tokens
    step = plant.prefill(requests, tokens, pairs, clocks[index], NO_LIMIT_W)
    excess_j = (step.power_w - plant.idle_power_w(clocks[0])) * step.duration_s
    (row,) = np.flatnonzero((costs.first <= tokens) & (tokens <= costs.last))
    assert costs.seconds[row, index] + costs.pair_s[index] * pairs <= step.duration_s * (1 + ROUNDING)
    assert costs.excess_j[row, index] + costs.pair_excess_j[index] * pairs <= excess_j * (1 + ROUNDING)
    assert costs.first[0] == 1 and costs.last[-1] == 2048
    assert all(a + 1 == b for a, b in zip(costs.last, costs.first[1:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("model=qwen3_32b",), ("model=ministral_3b",)])
def test_what_the_proof_takes_for_granted(overrides: tuple[str, ...]) -> None:
    """Idle power rises with the clock; time does not fall with KV tokens, nor prefill with tokens."""
    plant = plant_of(*overrides)
    clocks = plant.gpu.clocks()
    assert all(plant.idle_power_w(low) <= plant.idle_power_w(high) for low, high in pairwise(clocks))
    seconds, excess_j = decode_costs(plant, 64)
    assert (np.diff(seconds, axis=-1) >= 0).all() and (excess_j >= 0).all()
    prefill = prefill_costs(plant, 2048)
    assert (np.diff(prefill.seconds, axis=0) >= 0).all() and (np.diff(prefill.excess_j, axis=0) >= -1e-12).all()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 5)), max_size=12))
def test_most_at_once(spans: list[tuple[int, int, int]]) -> None:
    opens, lengths, weights = (
        (np.array(column, float) for column in zip(*spans, strict=True)) if spans else [np.zeros(0)] * 3
    )
    counted = [sum(w for a, n, w in spans if a <= t <= a + n) for t in range(31)]
    assert most_at_once(opens, opens + lengths, weights) == max(counted)


# Records.


def test_the_command_adds_it_to_every_record(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run("policy=static_max", "requests=20")
    before = json.loads((record.folder / SUMMARY).read_text())
    assert main([str(tmp_path)]) == 0
    after = json.loads((record.folder / SUMMARY).read_text())
    assert after.pop(KEY) == pytest.approx(bound_of(record).total_j)
    assert after == before
    assert "times the bound" in capsys.readouterr().out
    assert sorted(path.name for path in record.folder.iterdir()) == sorted(
        ["config.yaml", "instances.parquet", "provenance.json", "requests.parquet", "summary.json"]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("serving.latency_noise=0.1",), "found noise or drift"),
        (("drift=slow_and_hot",), "found noise or drift"),
    ],
)
def test_a_run_without_a_bound_is_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    record = run("policy=static_max", "requests=5", *overrides)
    assert main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert KEY not in json.loads((record.folder / SUMMARY).read_text())


def test_live_and_interrupted_runs_have_none(run: Run) -> None:
    record = run("policy=static_max", "requests=5")
    for change, message in (({"source": "live"}, "found source 'live'"), ({"interrupted": True}, "interrupted")):
        (record.folder / SUMMARY).write_text(json.dumps({**record.summary, **change}))
        with pytest.raises(UserError, match=message):
            add_to(RunRecord(record.folder))


def test_a_run_adds_it_itself_where_asked(tmp_path: Path) -> None:
    run_job(compose_sim("policy=static_max", "requests=20", "bound=true"), tmp_path)
    record = RunRecord(tmp_path)
    assert record.summary["energy_bound_j"] == pytest.approx(bound_of(record).total_j, rel=1e-12)


def test_no_bound_is_promised_for_a_plant_that_changes(run: Run) -> None:
    with pytest.raises(UserError, match="bound: found True, allowed: false where"):
        run("policy=static_max", "bound=true", "serving.latency_noise=0.1")


def test_a_folder_without_records_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("voltana.sim.studies.bound: error: ")

"""Laws that every run obeys, whatever its policy and load."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.record import CONFIG, INSTANCES, REQUESTS, RunRecord
from voltana.sim.run.simulate import simulate

Run = Callable[..., RunRecord]

WORKLOADS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["static_max", "static_1005", "voltana", "voltana_released"]),
        "trace": st.sampled_from(["sharegpt", "lmsys"]),
        "arrival": st.sampled_from(["poisson", "gamma"]),
        "rps": st.sampled_from([2, 20, 150]),
        "requests": st.integers(1, 60),
        "cluster.prefill_instances": st.integers(1, 3),
        "cluster.decode_instances": st.integers(1, 3),
        "serving.prefill.chunk_tokens": st.sampled_from(["null", 256]),
        "serving.decode.kv_tokens": st.sampled_from(["auto", 6000]),
        "seed": st.integers(0, 1000),
    }
)


@pytest.fixture(scope="module", name="record_of")
def _record_of(
    values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], RunRecord]:
    folder = tmp_path_factory.mktemp("run")

    def go(choice: dict[str, Any]) -> RunRecord:
        simulate(values(*(f"{key}={value}" for key, value in choice.items())), folder, overwrite=True)
        return RunRecord(folder)

    return go


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(choice=WORKLOADS)
def test_laws(record_of: Callable[[dict[str, Any]], RunRecord], choice: dict[str, Any]) -> None:
    record = record_of(choice)
    requests, instances, summary = record.requests(), record.instances(), record.summary
    _every_request_is_accounted_for(requests, summary)
    _nothing_precedes_its_cause(requests)
    _latencies_follow_from_times(requests)
    _rows_cover_the_run(instances, summary)
    _energy_is_the_integral_of_power(instances, summary)
    _little(requests, instances, summary, choice)


def _every_request_is_accounted_for(requests: pd.DataFrame, summary: dict[str, Any]) -> None:
    counts = summary["requests"]
    assert list(requests.request_id) == list(range(counts["submitted"]))
    statuses = requests.status.value_counts()
    for status in ("completed", "failed", "unfinished"):
        assert counts[status] == statuses.get(status, 0)
    assert counts["unfinished"] == 0
    tokens = requests[requests.status == "completed"].output_tokens.sum()
    assert summary["throughput"]["output_tokens_per_s"] == pytest.approx(tokens / summary["duration_s"])


def _nothing_precedes_its_cause(requests: pd.DataFrame) -> None:
    done = requests[requests.status == "completed"]
    for before, after in pairwise(("arrival_s", "prefill_start_s", "prefill_end_s", "first_token_s", "finish_s")):
        assert (done[before] <= done[after]).all()
    assert (done.prefill_end_s < done.first_token_s).all()
    assert ((done.first_token_s < done.finish_s) == (done.output_tokens > 1)).all()


def _latencies_follow_from_times(requests: pd.DataFrame) -> None:
    done = requests[(requests.status == "completed") & (requests.output_tokens > 1)]
    assert ((done.first_token_s - done.arrival_s - done.ttft_s).abs() < 1e-9).all()
    mean = (done.finish_s - done.first_token_s) / (done.output_tokens - 1)
    assert ((mean - done.mean_itl_s).abs() < 1e-9).all()
    assert (done.max_itl_s >= done.mean_itl_s - 1e-9).all()


def _rows_cover_the_run(instances: pd.DataFrame, summary: dict[str, Any]) -> None:
    for name, rows in instances.groupby("instance"):
        assert name in summary["energy_j"]["per_instance"]
        assert rows.time_s.iloc[0] == summary["start_s"]
        assert rows.time_s.is_monotonic_increasing and rows.time_s.is_unique
        assert rows.time_s.iloc[-1] < summary["end_s"]
        assert (rows.power_w > 0).all()
    assert instances.instance.nunique() == len(summary["energy_j"]["per_instance"])


def _energy_is_the_integral_of_power(instances: pd.DataFrame, summary: dict[str, Any]) -> None:
    energy = summary["energy_j"]
    for name, rows in instances.groupby("instance"):
        ends = [*rows.time_s.iloc[1:], summary["end_s"]]
        integral = math.fsum((rows.power_w * (ends - rows.time_s)).tolist())
        assert integral == pytest.approx(energy["per_instance"][name], rel=1e-9)
    assert energy["total"] == pytest.approx(energy["prefill"] + energy["decode"], rel=1e-12)
    assert energy["total"] == pytest.approx(sum(energy["per_instance"].values()), rel=1e-12)


def _little(requests: pd.DataFrame, instances: pd.DataFrame, summary: dict[str, Any], choice: dict[str, Any]) -> None:
    """L = lambda W: the batch integrated over time, as instances saw it = time in it, as requests saw it."""
    done = requests[requests.status == "completed"]
    in_prefill = (done.prefill_end_s - done.prefill_start_s).sum()
    in_decode = (done.finish_s - done.first_token_s).sum()
    if choice["serving.prefill.chunk_tokens"] == "null":
        assert _batch_area(instances, "prefill", summary["end_s"]) == pytest.approx(in_prefill, rel=1e-9)
    if choice["serving.decode.kv_tokens"] == "auto":
        assert _batch_area(instances, "decode", summary["end_s"]) == pytest.approx(in_decode, rel=1e-9)


def _batch_area(instances: pd.DataFrame, phase: str, end_s: float) -> float:
    area = 0.0
    for _, rows in instances[instances.phase == phase].groupby("instance"):
        area += math.fsum(rows.batch_size * ([*rows.time_s.iloc[1:], end_s] - rows.time_s))
    return area


def test_same_seed_same_bytes(run: Run) -> None:
    first, second = run("policy=voltana"), run("policy=voltana")
    for name in (CONFIG, REQUESTS, INSTANCES):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    wall = {"wall_s", "simulated_requests_per_s"}
    assert {k: v for k, v in first.summary.items() if k not in wall} == {
        k: v for k, v in second.summary.items() if k not in wall
    }


@pytest.mark.slow
def test_another_seed_is_another_run(run: Run) -> None:
    first, second = run("seed=1"), run("seed=2")
    assert (first.folder / REQUESTS).read_bytes() != (second.folder / REQUESTS).read_bytes()


def test_idle_instances_draw_idle_power(run: Run) -> None:
    record = run("policy=static_max", "cluster.decode_instances=3", "requests=1")
    rows = record.instances()
    idle = rows[rows.batch_size == 0]
    assert set(idle.instance) >= {"decode-1", "decode-2", "prefill-0"}
    assert idle.power_w.min() == pytest.approx(idle.power_w.max())
    assert idle.power_w.iloc[0] < rows[rows.batch_size > 0].power_w.min()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["static_max", "static_1005"])
def test_a_lower_clock_is_slower_and_cheaper(run: Run, policy: str) -> None:
    clocks = {name: run(f"policy={name}").summary for name in ("static_max", "static_1005")}
    assert clocks["static_1005"]["energy_j"]["total"] < clocks["static_max"]["energy_j"]["total"]
    for kind in ("ttft_ms", "itl_ms"):
        assert clocks["static_1005"][kind]["mean"] > clocks["static_max"][kind]["mean"]

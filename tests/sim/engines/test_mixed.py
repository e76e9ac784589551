"""Clusters whose phases differ in GPU, tensor parallelism and limits."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.records import assert_same
from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.section import parse
from voltana.sim.plant.build import build_plants, hosts
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import simulate
from voltana.sim.run.worker import run_job

Values = Callable[..., dict[str, Any]]
KINDS = [
    ("cluster.prefill.gpu=h100_sxm",),
    ("cluster.prefill.tp=2", "cluster.decode.power_limit_w=220"),
    ("cluster.decode.gpu=b200_sxm", "cluster.decode.tp=2"),
]
LOAD = ("policy=static_max", "rps=30", "requests=60")
MIXED = ("cluster.prefill.gpu=h100_sxm", "cluster.decode.gpu=a100_sxm4_80g", *LOAD)

RUNS = st.fixed_dictionaries(
    {
        "cluster.prefill_instances": st.integers(1, 3),
        "cluster.decode_instances": st.integers(1, 3),
        "cluster.link.bytes_per_s": st.sampled_from([1e11, 1e9]),
        "drift.at_s": st.sampled_from([None, 0.4]),
        "requests": st.integers(1, 60),
        "seed": st.integers(0, 1000),
    }
)


def run(values: dict[str, Any], folder: Path) -> RunRecord:
    simulate(values, folder, overwrite=True)
    return RunRecord(folder)


def config(values: dict[str, Any]) -> SimConfig:
    return parse(SimConfig, values)


@settings(max_examples=8)
@given(kind=st.sampled_from(KINDS), chosen=RUNS)
def test_both_engines_write_the_same_record(
    kind: tuple[str, ...], chosen: dict[str, Any], values: Values, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, own = tmp_path_factory.mktemp("mixed"), values(*kind, "policy=voltana", "drift=slow_and_hot", "rps=40")
    for key, value in chosen.items():
        *sections, last = key.split(".")
        reduce(dict.__getitem__, sections, own)[last] = value
    assert_same(*(run(own | {"engine": engine}, folder / engine) for engine in ("reference", "fast")))


@pytest.mark.parametrize(("phase", "gpu"), [("prefill", "h100_sxm"), ("decode", "a100_sxm4_80g")])
def test_each_phase_works_and_is_predicted_as_in_a_cluster_of_its_own_kind(
    phase: Any, gpu: str, values: Values, tmp_path: Path
) -> None:
    mixed, pure = values(*MIXED), values(f"gpu={gpu}", *LOAD)
    assert build_plants(config(mixed)).of(phase) is build_plants(config(pure)).of(phase)
    one, other = (RunBuilder(config(each)).offers(phase) for each in (mixed, pure))
    assert one.predictor().as_json() == other.predictor().as_json()
    assert one.clocks_mhz() == other.clocks_mhz()
    if phase == "prefill":  # nothing behind it changes what it does
        records = [run(each, tmp_path / "run").instances() for each in (mixed, pure)]
        busy = [rows.query("phase == 'prefill' and batch_size > 0") for rows in records]
        assert busy[0].reset_index(drop=True).equals(busy[1].reset_index(drop=True))


def test_clocks_in_words_are_those_of_the_gpu_of_their_phase(values: Values) -> None:
    words = ("policy=static_max", *(f"policy.{phase}_controller.clock_mhz=knee" for phase in ("prefill", "decode")))
    policy = values(*MIXED[:2], *words)["policy"]
    assert [policy[f"{phase}_controller"]["clock_mhz"] for phase in ("prefill", "decode")] == [960, 1155]


def test_a_summary_marks_power_that_was_scaled_on_either_side(values: Values, tmp_path: Path) -> None:
    summary = run_job(values("cluster.decode.gpu=b200_sxm", "bound=both", *LOAD), tmp_path).summary
    assert summary["gpu"] == {"name": "a100_sxm4_80g + b200_sxm", "power": "scaled", "scaled": ["b200_sxm"]}
    assert 0 < max(summary["energy_bound_j"], summary["energy_stationary_j"]) < summary["energy_j"]["total"]


@pytest.mark.parametrize(
    ("overrides", "places"),
    [
        ((), [0, 0, 0, 0, 0]),
        (("cluster.gpus_per_host=2",), [0, 0, 1, 1, 2]),
        (("cluster.gpus_per_host=4", "cluster.decode.tp=4"), [0, 0, 1, 2, 3]),
        (("cluster.decode.gpu=h100_sxm",), [0, 0, 1, 1, 1]),
    ],
)
def test_hosts_are_filled_with_whole_instances_of_one_kind(
    overrides: tuple[str, ...], places: list[int], values: Values
) -> None:
    checked = config(values("cluster.decode_instances=3", *overrides))
    assert hosts(checked, build_plants(checked)) == places


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.decode.gpu=h101", "cluster.decode.gpu: gpu=h101: no such option; allowed: a100_sxm4_80g, "),
        ("cluster.decode.tp=16", "cluster.gpus_per_host: found 8, allowed: a multiple of cluster.decode.tp = 16"),
        ("cluster.decode.tp=3", "cluster.decode: model.tp: found 3"),
        ("cluster.decode.power_limit_w=-1", "cluster.decode.power_limit_w: found -1"),
        ("+cluster.decode.gpus=2", "cluster.decode.gpus: unknown key; allowed: gpu, tp, "),
    ],
)
def test_a_bad_value_is_refused_by_its_key(override: str, message: str, values: Values) -> None:
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        RunBuilder(config(values(override))).cluster()


def test_a_policy_that_reads_power_needs_sensors_that_are_alike(values: Values) -> None:
    policy = ("policy=polca", "cluster.decode.gpu=h100_sxm")
    alike = values(*policy)
    RunBuilder(config(alike)).cluster()
    alike["cluster"]["decode"]["gpu"]["sensor_window_s"] = 1.0
    with pytest.raises(UserError, match=r"cluster: found GPUs with sensor_window_s 0.025 and 1.0 under a policy"):
        RunBuilder(config(alike)).cluster()


def test_a_predictor_from_a_file_is_refused_where_the_phases_need_two(values: Values) -> None:
    with pytest.raises(UserError, match=r"predictor: found mine.json, allowed: auto, as the GPUs"):
        RunBuilder(config(values("cluster.decode.gpu=h100_sxm", "predictor=mine.json"))).cluster()

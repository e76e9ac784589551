"""The event-skipping engine writes the record of the reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.sim.records import assert_same, assert_same_table
from voltana import conf
from voltana.record import RunRecord
from voltana.sim.fast.decode import LongestGaps, Run
from voltana.sim.run.simulate import simulate

PRESETS = Path(conf.__file__).parent / "policy"
POLICIES = sorted(
    str(file.relative_to(PRESETS).with_suffix("")) for file in (*PRESETS.glob("*.yaml"), *PRESETS.glob("*/next_*.yaml"))
)
Values = Callable[..., dict[str, Any]]

RUNS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(POLICIES),
        "model": st.sampled_from(["llama31_8b", "qwen3_32b", "ministral_3b"]),
        "trace": st.sampled_from(["sharegpt", "lmsys", "lognormal"]),
        "arrival": st.sampled_from(["poisson", "gamma"]),
        "actuation": st.sampled_from(["nvml", "instant", "nvidia_smi"]),
        "rps": st.sampled_from([1, 8, 30, 120]),
        "requests": st.integers(1, 80),
        "cluster.prefill_instances": st.integers(1, 3),
        "cluster.decode_instances": st.integers(1, 4),
        "cluster.gpus_per_host": st.sampled_from([2, 8]),
        "serving.prefill.chunk_tokens": st.sampled_from(["null", 300]),
        "serving.decode.kv_tokens": st.sampled_from(["auto", 16_000, 5000, 1500]),
        "serving.decode.reserve_tokens": st.sampled_from([8, 0, 1, 200]),
        "serving.decode.max_requests": st.sampled_from([1024, 6]),
        "serving.latency_noise": st.sampled_from([0.0, 0.0, 0.05]),
        "front_end.leg_s": st.sampled_from([0.0, 0.003, 0.02]),
        "front_end.stall_legs": st.sampled_from(["null", 2, 30]),
        "drift": st.just("slow_and_hot"),
        "drift.at_s": st.sampled_from(["null", "null", 0.4, 1.5]),
        "seed": st.integers(0, 10_000),
    }
)


@pytest.fixture(scope="module", name="both")
def _both(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[RunRecord]]:
    """Simulate a configuration with both engines."""
    folder = tmp_path_factory.mktemp("engines")

    def go(*overrides: str) -> list[RunRecord]:
        records, chosen = [], values(*overrides)
        for engine in ("reference", "fast"):
            simulate(chosen | {"engine": engine}, folder / engine, overwrite=True)
            records.append(RunRecord(folder / engine))
        return records

    return go


EARLY_DRIFT = {
    "policy": "oracle",
    "rps": 1,
    "requests": 1,
    "cluster.prefill_instances": 1,
    "cluster.decode_instances": 1,
    "front_end.leg_s": 0.0,
    "drift": "slow_and_hot",
    "drift.at_s": 0.4,
    "seed": 0,
}
"""The first request comes at 0.8 s."""


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@example(choice=EARLY_DRIFT)
@given(choice=RUNS)
def test_both_engines_write_the_same_record(both: Callable[..., list[RunRecord]], choice: dict[str, Any]) -> None:
    reference, fast = both(*(f"{key}={value}" for key, value in choice.items()))
    assert_same(reference, fast)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "policy.decode_controller.interval_s=0.5",
        "policy.prefill_controller.max_requests_per_s=20",
        "policy.decode_controller.max_tokens_per_s=2000",
        "policy.decode_controller.levels_mhz=[810,1005,1200,1410]",
        "slo.itl_ms=13",
        "slo.ttft_ms=100",
    ],
)
def test_controllers_that_must_be_asked_more_often(both: Callable[..., list[RunRecord]], change: str) -> None:
    reference, fast = both("policy=voltana", "rps=25", "requests=150", "slo.itl_ms=14", "slo.ttft_ms=40", change)
    assert reference.summary["clock_changes"] > 0
    assert_same(reference, fast)


@pytest.mark.slow
@pytest.mark.parametrize("router", ["ecoroute_released", "tile_aware"])
@pytest.mark.parametrize(
    "trace", [("trace=sharegpt",), ("trace=fixed", "trace.output_tokens=6", "trace.geometric=both")]
)
def test_routers_that_choose_at_arrival(
    both: Callable[..., list[RunRecord]], router: str, trace: tuple[str, ...]
) -> None:
    choice = ("policy=voltana_released", f"router@policy.decode_router={router}", "policy.decode_router.tile=8")
    objective = ("policy.decode_router.objective_ms=14",) if router == "ecoroute_released" else ()
    load = ("rps=60", "requests=200", "cluster.decode_instances=3")
    reference, fast = both(*choice, *objective, *load, *trace)
    assert_same(reference, fast)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen3_30b_a3b", "gpt_oss_120b"])
@pytest.mark.parametrize("policy", ["voltana", "voltana_next"])
def test_mixtures_of_experts_on_another_gpu(both: Callable[..., list[RunRecord]], model: str, policy: str) -> None:
    load = ("trace=sharegpt", "rps=20", "requests=60", "slo.itl_ms=16")
    reference, fast = both("gpu=h100_sxm", f"model={model}", f"policy={policy}", *load)
    assert reference.summary["requests"]["completed"] == 60
    assert_same(reference, fast)


@pytest.mark.slow
def test_answers_of_one_token_leave_an_idle_instance_idle(both: Callable[..., list[RunRecord]], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [(0.0, 900, 40), *((1.0 + 1.7 * i, 50, 1) for i in range(8)), (16.0, 900, 40)]
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{a},{i},{o}\n" for a, i, o in rows))
    replay = ("trace=file", f"trace.path={trace}", "arrival=timestamps", "duration_s=null", "requests=100")
    reference, fast = both("policy=voltana", "slo.itl_ms=7", "cluster.decode_instances=1", *replay)
    assert_same_table(reference.requests(), fast.requests())
    assert_same_table(reference.instances(), fast.instances())
    decode = reference.instances().query("phase == 'decode' and 2 < time_s < 16")
    assert decode.batch_size.tolist() == [0] and decode.clock_mhz.tolist() == [1005]
    assert 5 < decode.time_s.iloc[0] < 6  # asked after 5 s of idleness, which no such answer interrupts


@given(
    left=st.floats(0.01, 1.0),
    a=st.floats(1e-3, 0.2),
    b=st.one_of(st.just(0.0), st.floats(1e-9, 1e-3)),
    n=st.integers(1, 3000),
    share=st.floats(0.01, 0.99),
    slo=st.floats(1e-3, 0.5),
)
def test_a_run_of_iterations_sums_in_closed_form(
    left: float, a: float, b: float, n: int, share: float, slo: float
) -> None:
    run = Run(0.0, left, a, b, 2 * a, 3 * b)
    times = [left * a, *(a + b * k for k in range(1, n))]
    assert run.elapsed_s(n) == pytest.approx(sum(times), rel=1e-9)
    assert run.energy_j(n) == pytest.approx(left * 2 * a + sum(2 * a + 3 * b * k for k in range(1, n)), rel=1e-9)
    inside = run.elapsed_s(n - 1) + share * times[-1]
    assert run.complete(inside) == n - 1
    clear = [t for t in times[1:] if abs(t - slo) > 1e-9]
    if len(clear) == n - 1:
        assert run.gaps_within(slo, n) == sum(t <= slo for t in clear)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.data())
def test_longest_gaps(gaps: list[float], data: st.DataObject) -> None:
    longest = LongestGaps()
    for moment, gap in enumerate(gaps):
        longest.add(3 * moment, gap)
    start = data.draw(st.integers(0, len(gaps) - 1))
    assert longest.since(3 * start) == max(gaps[start:])

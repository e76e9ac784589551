"""Every rival of the paper's policy in whole runs: both engines agree, and each does what it is there for."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.sim.records import assert_same
from voltana.record import RunRecord

Run = Callable[..., RunRecord]


class Case(NamedTuple):
    """A policy at a load, and how many requests must complete; None: all of those that come, at least one."""

    policy: str
    load: tuple[str, ...] = ()
    completed: int | None = 60


def both_phases(words: str) -> tuple[str, ...]:
    return tuple(f"policy.{phase}_controller.{words}" for phase in ("prefill", "decode"))


NO_BOOST = both_phases("perf_boost=false")
TIGHT = ("rps=60", "slo.ttft_ms=150", "slo.itl_ms=15")
SAVING = ("dualscale", "dynamollm", "greenllm")
"""Those that save a tenth without losing objectives at low load."""
CASES = [
    Case("agft", completed=None),
    Case("agft", ("sensor=ideal", "rps=100"), None),
    Case("agft", ("rps=1", "serving.latency_noise=0.05"), None),
    *(Case(policy, load) for policy in SAVING for load in (("rps=20",), TIGHT)),
    Case("governor"),
    Case("governor", NO_BOOST),
    Case("oracle", ("rps=8",), None),
    Case("oracle", ("rps=60",), None),
    Case("polca", completed=None),
    Case("polca", both_phases("provisioned_w=900"), None),
    Case("polca", ("sensor=ideal", "serving.latency_noise=0.05"), None),
    Case("polca", ("sensor=nvml_average",), None),
    Case("power_cap", completed=None),
    Case("power_cap", ("policy.decode_controller.cap_w=120", "slo.itl_ms=16"), None),
    Case("power_cap", ("policy.decode_controller.releases=false", "serving.latency_noise=0.05"), None),
    Case("power_cap", ("model=qwen3_32b", "rps=8"), None),
    Case("throttllem", completed=None),
    Case("throttllem", ("slo.itl_ms=14", "slo.ttft_ms=40"), None),
    Case("throttllem", ("serving.decode.kv_tokens=5000", "rps=120"), None),
    Case("throttllem", ("serving.length_error=0.0", "serving.latency_noise=0.05"), None),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((case.policy, *case.load)))
def test_both_engines_write_the_same_record(run: Run, case: Case) -> None:
    words = (f"policy={case.policy}", "requests=60", *case.load)
    reference, fast = (run(*words, f"engine={engine}") for engine in ("reference", "fast"))
    assert_same(reference, fast)
    requests = fast.summary["requests"]
    assert requests["completed"] == (case.completed or requests["submitted"]) > 0
    if case.policy == "oracle":
        assert fast.summary["clock_changes"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("policy", SAVING)
def test_it_saves_energy_at_low_load(run: Run, policy: str) -> None:
    setting = ("requests=300", "rps=20", "duration_s=15")
    rule, fixed = (run(f"policy={name}", *setting).summary for name in (policy, "static_max"))
    assert rule["energy_j"]["total"] < 0.9 * fixed["energy_j"]["total"]
    assert rule["joint_attainment"] > fixed["joint_attainment"] - 0.02


def test_agft_learns_clocks_below_the_highest(run: Run) -> None:
    record = run("policy=agft", "requests=400", "duration_s=20")
    clocks = set(record.instances().query("phase == 'decode'")["clock_mhz"])
    assert 1410 in clocks
    assert len(clocks - {210, 1410}) > 1


def test_the_seed_of_the_run_decides_what_agft_does(run: Run) -> None:
    first, again = (run("policy=agft", "duration_s=10", "requests=200") for _ in range(2))
    assert first.instances().equals(again.instances())


@pytest.mark.slow
def test_under_the_governor_work_never_waits_for_the_clock_and_idle_time_is_spent_at_the_lowest(run: Run) -> None:
    """With its boost it keeps the highest clock; without, the lowest when idle."""
    setting = ("requests=30", "rps=2", "duration_s=20")
    boosted, fixed = (run(f"policy={name}", *setting) for name in ("governor", "static_max"))
    assert boosted.summary["energy_j"]["total"] == pytest.approx(fixed.summary["energy_j"]["total"], rel=1e-9)
    governor = run("policy=governor", *setting, *NO_BOOST)
    assert governor.summary["ttft_ms"] == pytest.approx(fixed.summary["ttft_ms"], rel=1e-9)
    assert governor.summary["energy_j"]["total"] < fixed.summary["energy_j"]["total"]
    rows = governor.instances()
    assert set(rows.clock_mhz[rows.batch_size > 0]) == {1410}
    assert 210 in set(rows.clock_mhz[rows.batch_size == 0])


def test_the_less_power_polca_is_provisioned_the_less_is_drawn(run: Run) -> None:
    ample, scarce = (run("policy=polca", *both_phases(f"provisioned_w={w}")) for w in (1600, 900))
    assert ample.summary["mean_power_w"] > scarce.summary["mean_power_w"]
    assert scarce.summary["clock_changes"] > 0


def test_decode_never_draws_more_than_a_cap_that_stays(run: Run) -> None:
    record = run("policy=power_cap", "policy.decode_controller.cap_w=200", "policy.decode_controller.releases=false")
    free = run("policy=static_max")
    power_w = {r: r.instances().query("phase == 'decode'")["power_w"].max() for r in (record, free)}
    assert power_w[record] <= 200 * (1 + 1e-9) < power_w[free]


def test_a_released_cap_gives_latency_back(run: Run) -> None:
    stays, released = (
        run("policy=power_cap", "policy.decode_controller.cap_w=120", "slo.itl_ms=16", f"policy.decode_controller.{r}")
        for r in ("releases=false", "releases=true")
    )
    assert released.summary["itl_ms"]["mean"] < stays.summary["itl_ms"]["mean"]


@pytest.mark.slow
def test_a_tight_objective_costs_throttllem_energy(run: Run) -> None:
    easy, hard = (run("policy=throttllem", f"slo.itl_ms={itl}") for itl in (60, 13))
    assert easy.summary["energy_j"]["decode"] < hard.summary["energy_j"]["decode"]


def test_throttllem_saves_energy_at_the_attainment_of_the_highest_clock(run: Run) -> None:
    static, rule = (run(f"policy={name}") for name in ("static_max", "throttllem"))
    assert rule.summary["energy_j"]["total"] < 0.9 * static.summary["energy_j"]["total"]
    assert rule.summary["joint_attainment"] >= static.summary["joint_attainment"] - 0.05

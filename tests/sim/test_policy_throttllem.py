"""throttLL'eM in whole runs."""

from collections.abc import Callable

import pytest

from voltana.record import RunRecord

Run = Callable[..., RunRecord]


def numbers(summary: object, key: str = "") -> dict[str, float]:
    """The numbers of a summary that both engines must agree on."""
    if isinstance(summary, dict):
        parts = [numbers(value, f"{key}.{name}") for name, value in summary.items()]
        return {name: value for part in parts for name, value in part.items() if "wall_s" not in name}
    return {key: summary} if isinstance(summary, int | float) and "simulated" not in key else {}


@pytest.mark.parametrize(
    "load",
    [
        (),
        ("slo.itl_ms=14", "slo.ttft_ms=40"),
        ("serving.decode.kv_tokens=5000", "rps=120"),
        ("serving.length_error=0.0", "serving.latency_noise=0.05"),
    ],
)
def test_both_engines_write_the_same_record(run: Run, load: tuple[str, ...]) -> None:
    reference, fast = (run("policy=throttllem", "requests=60", f"engine={e}", *load) for e in ("reference", "fast"))
    assert numbers(fast.summary) == pytest.approx(numbers(reference.summary), rel=1e-9, abs=1e-9)
    assert fast.summary["requests"]["completed"] == fast.summary["requests"]["submitted"] > 0
    assert len(fast.instances()) == len(reference.instances())
    assert fast.requests()["finish_s"].to_numpy() == pytest.approx(
        reference.requests()["finish_s"].to_numpy(), rel=1e-9
    )


def test_a_tight_objective_costs_energy(run: Run) -> None:
    easy, hard = (run("policy=throttllem", f"slo.itl_ms={itl}") for itl in (60, 13))
    assert easy.summary["energy_j"]["decode"] < hard.summary["energy_j"]["decode"]


def test_saves_energy_at_the_attainment_of_the_highest_clock(run: Run) -> None:
    static, rule = (run(f"policy={name}") for name in ("static_max", "throttllem"))
    assert rule.summary["energy_j"]["total"] < 0.9 * static.summary["energy_j"]["total"]
    assert rule.summary["joint_attainment"] >= static.summary["joint_attainment"] - 0.05

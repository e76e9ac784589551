"""AGFT in whole runs."""

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
        ("sensor=ideal", "rps=100"),
        ("rps=1", "serving.latency_noise=0.05"),
    ],
)
def test_both_engines_write_the_same_record(run: Run, load: tuple[str, ...]) -> None:
    reference, fast = (run("policy=agft", "requests=60", f"engine={e}", *load) for e in ("reference", "fast"))
    assert numbers(fast.summary) == pytest.approx(numbers(reference.summary), rel=1e-9, abs=1e-9)
    assert fast.summary["requests"]["completed"] == fast.summary["requests"]["submitted"] > 0
    assert len(fast.instances()) == len(reference.instances())
    assert fast.requests()["finish_s"].to_numpy() == pytest.approx(
        reference.requests()["finish_s"].to_numpy(), rel=1e-9
    )


def test_learns_clocks_below_the_highest(run: Run) -> None:
    record = run("policy=agft", "requests=400", "duration_s=20")
    clocks = set(record.instances().query("phase == 'decode'")["clock_mhz"])
    assert 1410 in clocks
    assert len(clocks - {210, 1410}) > 1


def test_the_seed_of_the_run_decides(run: Run) -> None:
    first, again = (run("policy=agft", "duration_s=10", "requests=200") for _ in range(2))
    assert first.instances().equals(again.instances())

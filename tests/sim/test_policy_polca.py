"""POLCA in whole runs."""

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
        ("policy.decode_controller.provisioned_w=900", "policy.prefill_controller.provisioned_w=900"),
        ("sensor=ideal", "serving.latency_noise=0.05"),
    ],
)
def test_both_engines_write_the_same_record(run: Run, load: tuple[str, ...]) -> None:
    reference, fast = (run("policy=polca", "requests=60", f"engine={e}", *load) for e in ("reference", "fast"))
    assert numbers(fast.summary) == pytest.approx(numbers(reference.summary), rel=1e-9, abs=1e-9)
    assert fast.summary["requests"]["completed"] == fast.summary["requests"]["submitted"] > 0
    assert len(fast.instances()) == len(reference.instances())
    assert fast.requests()["finish_s"].to_numpy() == pytest.approx(
        reference.requests()["finish_s"].to_numpy(), rel=1e-9
    )


def test_the_less_power_is_provisioned_the_less_is_drawn(run: Run) -> None:
    keys = ("policy.decode_controller.provisioned_w", "policy.prefill_controller.provisioned_w")
    ample, scarce = (run("policy=polca", *(f"{key}={w}" for key in keys)) for w in (1600, 900))
    assert ample.summary["mean_power_w"] > scarce.summary["mean_power_w"]
    assert scarce.summary["clock_changes"] > 0

"""The power cap of decode in whole runs."""

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
        ("policy.decode_controller.cap_w=120", "slo.itl_ms=16"),
        ("policy.decode_controller.releases=false", "serving.latency_noise=0.05"),
        ("model=qwen3_32b", "rps=8"),
    ],
)
def test_both_engines_write_the_same_record(run: Run, load: tuple[str, ...]) -> None:
    reference, fast = (run("policy=power_cap", "requests=60", f"engine={e}", *load) for e in ("reference", "fast"))
    assert numbers(fast.summary) == pytest.approx(numbers(reference.summary), rel=1e-9, abs=1e-9)
    assert fast.summary["requests"]["completed"] == fast.summary["requests"]["submitted"] > 0
    assert len(fast.instances()) == len(reference.instances())
    assert fast.requests()["finish_s"].to_numpy() == pytest.approx(
        reference.requests()["finish_s"].to_numpy(), rel=1e-9
    )


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

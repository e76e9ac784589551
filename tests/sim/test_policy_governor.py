"""The governor in a run: the highest clock; without the boost the lowest when idle, with both engines."""

from collections.abc import Callable

import pytest

from voltana.record import RunRecord

Run = Callable[..., RunRecord]
NO_BOOST = tuple(f"policy.{phase}_controller.perf_boost=false" for phase in ("prefill", "decode"))


@pytest.mark.parametrize("boost", [(), NO_BOOST])
def test_both_engines_agree(run: Run, boost: tuple[str, ...]) -> None:
    reference, fast = (
        run("policy=governor", "requests=60", f"engine={name}", *boost).summary for name in ("reference", "fast")
    )
    assert fast["requests"]["completed"] == 60
    for key in ("joint_attainment", "clock_changes", "duration_s"):
        assert fast[key] == pytest.approx(reference[key], rel=1e-9), key
    for key in ("total", "prefill", "decode"):
        assert fast["energy_j"][key] == pytest.approx(reference["energy_j"][key], rel=1e-9), key


def test_work_never_waits_for_the_clock_and_idle_time_is_spent_at_the_lowest(run: Run) -> None:
    setting = ("requests=30", "rps=2", "duration_s=20")
    boosted, fixed = (run(f"policy={name}", *setting) for name in ("governor", "static_max"))
    assert boosted.summary["energy_j"]["total"] == pytest.approx(fixed.summary["energy_j"]["total"], rel=1e-9)
    governor = run("policy=governor", *setting, *NO_BOOST)
    assert governor.summary["ttft_ms"] == pytest.approx(fixed.summary["ttft_ms"], rel=1e-9)
    assert governor.summary["energy_j"]["total"] < fixed.summary["energy_j"]["total"]
    rows = governor.instances()
    assert set(rows.clock_mhz[rows.batch_size > 0]) == {1410}
    assert 210 in set(rows.clock_mhz[rows.batch_size == 0])

"""DualScale's rules in a run: both engines agree, and energy is saved without losing the objectives at low load."""

from collections.abc import Callable

import pytest

from voltana.record import RunRecord

Run = Callable[..., RunRecord]


@pytest.mark.parametrize("setting", [("rps=20",), ("rps=60", "slo.ttft_ms=150", "slo.itl_ms=15")])
def test_both_engines_agree(run: Run, setting: tuple[str, ...]) -> None:
    runs = (run("policy=dualscale", "requests=60", *setting, f"engine={name}") for name in ("reference", "fast"))
    reference, fast = (record.summary for record in runs)
    assert fast["requests"]["completed"] == 60
    for key in ("joint_attainment", "clock_changes", "duration_s"):
        assert fast[key] == pytest.approx(reference[key], rel=1e-9), key
    for kind in ("energy_j", "ttft_ms", "itl_ms"):
        numbers = {key: value for key, value in reference[kind].items() if isinstance(value, float)}
        assert {key: fast[kind][key] for key in numbers} == pytest.approx(numbers, rel=1e-9), kind


def test_it_saves_energy_at_low_load(run: Run) -> None:
    setting = ("requests=300", "rps=20", "duration_s=15")
    policy, fixed = (run(f"policy={name}", *setting).summary for name in ("dualscale", "static_max"))
    assert policy["energy_j"]["total"] < 0.9 * fixed["energy_j"]["total"]
    assert policy["joint_attainment"] > fixed["joint_attainment"] - 0.02

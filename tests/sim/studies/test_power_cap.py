"""The calibration run of the power cap."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.sim.studies.power_cap import Trial, calibrate, caps_to_try, chosen_cap, power_limits_w

pytestmark = pytest.mark.slow

Values = Callable[..., dict[str, Any]]
LOADED = ("rps=60", "duration_s=8")
NATURAL = Trial(None, 390.0, 1e5, 1000.0, 0.99, 30.0)


def trial(cap_w: float, tokens_per_s: float = 1000.0, attainment: float = 0.99) -> Trial:
    return Trial(cap_w, cap_w, 9e4, tokens_per_s, attainment, 40.0)


def test_the_lowest_cap_before_the_cliff_is_chosen() -> None:
    trials = [NATURAL, trial(370), trial(350, tokens_per_s=980), trial(330, tokens_per_s=900)]
    assert chosen_cap(trials) == trials[2]
    assert chosen_cap([NATURAL, trial(370), trial(350, attainment=0.95)]) == trial(370)
    assert chosen_cap([NATURAL, trial(370)]) == trial(370)
    assert chosen_cap([NATURAL, trial(370, attainment=0.5)]) is None


def test_caps_fall_in_steps_within_what_the_gpu_takes() -> None:
    assert list(caps_to_try(400.0, (300.0, 390.0))) == [380, 360, 340, 320, 300]
    assert list(caps_to_try(150.0, (100.0, 400.0)))[-1] >= 100


def test_calibration_stops_at_the_cliff(values: Values, tmp_path: Path) -> None:
    config = values(*LOADED, "slo.itl_ms=30")
    trials = calibrate(config, tmp_path)
    natural, *capped = trials
    low, high = power_limits_w(config)
    assert all(t.keeps_up_with(natural) for t in capped[:-1])
    assert not capped[-1].keeps_up_with(natural)
    for t in capped:
        assert t.cap_w is not None
        assert low <= t.cap_w <= high
        assert t.draw_w <= t.cap_w * (1 + 1e-9) < natural.draw_w * (1 + 1e-9)
    energies = [t.energy_j for t in trials[:-1]]  # beyond the cliff a longer run may cost more again
    assert energies == sorted(energies, reverse=True)


def test_draw_and_cap_are_of_one_gpu_where_an_instance_has_several(values: Values, tmp_path: Path) -> None:
    natural, first, *_ = calibrate(values("model=qwen3_32b", "rps=8", "duration_s=8"), tmp_path)
    assert 100 < natural.draw_w <= 400
    assert first.cap_w == round(0.95 * natural.draw_w)


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voltana.sim.studies.power_cap", *overrides], capture_output=True, text=True, timeout=120
    )


def test_the_command_prints_a_table_and_writes_the_cap(tmp_path: Path, values: Values) -> None:
    done = command(*LOADED, "slo.itl_ms=30", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    cap_w = yaml.safe_load((tmp_path / "power_cap.yaml").read_text())["cap_w"]
    assert f"cap_w={cap_w:g}" in done.stdout
    assert "none" in done.stdout
    assert (tmp_path / f"{cap_w:g}W" / "summary.json").is_file()
    values("policy=power_cap", f"policy.decode_controller.cap_w={cap_w}")


@pytest.mark.parametrize("override", ["rps=-1", "nonsense=1", "gpu.power_limit_min_w=x"])
def test_bad_input_is_one_line(tmp_path: Path, override: str) -> None:
    done = command(override, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

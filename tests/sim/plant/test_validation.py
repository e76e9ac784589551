"""The plant against the measurements it was fitted to and those it predicts; skipped where the data is not at hand."""

import os
from functools import cache
from pathlib import Path

import pytest

from voltana.sim.calibration import kernels as calibrate
from voltana.sim.plant import GpuSpec

DATA = Path(os.environ.get("VOLTANA_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (DATA / "profiles").is_dir(), reason="no measurements (VOLTANA_DATA)")


@cache
def calibration() -> tuple[GpuSpec, dict[str, calibrate.Line]]:
    gpu, lines = calibrate.calibrate(DATA)
    return gpu, {line.group: line for line in lines}


@pytest.mark.slow
def test_the_shipped_constants_are_the_fitted_ones() -> None:
    assert calibrate.differences(calibration()[0], calibrate.load_gpu()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "most"),
    [
        ("power, 25 applications (rms)", 0.035),
        ("STREAM rate", 0.02),
        ("GEMM", 0.10),
        ("decode attention", 0.12),
        ("prefill attention", 0.10),
        *[(f"A800 {phase} time {clock}", 0.08) for phase in ("prefill", "decode") for clock in (690, 930, 1170, 1410)],
        *[
            (f"A800 {phase} energy {clock}", 0.08)
            for phase in ("prefill", "decode")
            for clock in (690, 930, 1170, 1410)
        ],
        *[(f"step llama31_8b {phase}", 0.05) for phase in ("prefill", "decode")],
        *[(f"step qwen3_32b {phase}", 0.08) for phase in ("prefill", "decode")],
    ],
)
def test_errors_stay_within_their_targets(group: str, most: float) -> None:
    line = calibration()[1][group]
    for error in (line.fitted_error, line.predicted_error):
        assert error is None or error <= most


@pytest.mark.slow
def test_nothing_of_the_step_latencies_is_fitted() -> None:
    assert all(line.fitted_rows == 0 for group, line in calibration()[1].items() if group.startswith("step"))

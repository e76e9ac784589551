"""A GPU fitted to a profile table: a known GPU is profiled, and comes back as far as a table can tell."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

import voltana.sim.calibration.kernels
from voltana.errors import UserError
from voltana.prediction.profile import Sample, write_profile
from voltana.section import parse
from voltana.sim.calibration.table import BASE, POWER, TIME, Setup, Table, calibrate, described, gpu_yaml, predict
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.run.compose import compose_sim

NOISE = 0.01
OTHER = {
    "tensor_efficiency": 0.72,
    "tile_overhead": 9.0,
    "dram_bytes_per_s": 1.95e12,
    "kernel_s": 3.2e-6,
    "attention_efficiency": 0.7,
    "attention_unit_cycles": 60.0,
    "base_w": 80.0,
    "tensor_w": 330.0,
    "stream_w": 240.0,
    "voltage_ratio": 1.35,
}
"""How the true GPU differs from the base."""
CONFIG = compose_sim(f"gpu={BASE}", "model=llama31_8b")
BASE_GPU = parse(GpuSpec, CONFIG["gpu"], "gpu")
TRUTH = BASE_GPU.but(name="truth", **OTHER)  # type: ignore[arg-type]
BATCHES = tuple(CONFIG["serving"]["engine"]["graph_batches"])
SETUP = Setup(parse(ModelSpec, CONFIG["model"], "model"), EngineSpec(graph_batches=BATCHES), all_reduce=True)


def loads() -> list[tuple[str, int, int]]:
    """Phase, batch and length, as `voltana-profile source=torch` would choose them."""
    prefill = [("prefill", n, 256) for n in (2, 5, 9, 14, 20, 28, 36, 44, 54, 64)]
    batches = (1, 2, 4, 6, 8, 12, 16, 24, 36, 52, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512)
    return prefill + [("decode", b, length) for b in batches for length in (64, 400, 780, 1500) if b * length < 400_000]


def profile(clocks: Sequence[int], noise: float = NOISE, gpu: GpuSpec = TRUTH) -> list[Sample]:
    """The true GPU's table."""
    rng, plant, rows = np.random.default_rng(1), Plant(gpu, SETUP.model, SETUP.engine), []
    for clock in clocks:
        for phase, batch, length in loads():
            tokens = batch * length
            step = (
                plant.prefill(batch, tokens, tokens * (length + 1) / 2, clock)
                if phase == "prefill"
                else plant.decode(batch, tokens, clock)
            )
            times, joules = np.exp(noise * rng.standard_normal(2)).tolist()
            energy = step.duration_s * step.power_w * joules
            rows.append(Sample(phase, clock, batch, tokens, step.duration_s * times, energy))  # type: ignore[arg-type]
    return rows


def worst(gpu: GpuSpec, clocks: Sequence[int]) -> tuple[float, float]:
    """Largest relative error of time and energy against the noise-free truth."""
    rows = profile(clocks, noise=0.0)
    errors = [
        (abs(s / row.latency_s - 1), abs(j / (row.energy_j or 1.0) - 1))
        for row, (s, j) in zip(rows, predict(gpu, rows, SETUP), strict=True)
    ]
    return max(e[0] for e in errors), max(e[1] for e in errors)


@pytest.mark.slow
def test_one_clock_gives_that_clock_back_and_no_more() -> None:
    fitted, errors = calibrate(BASE_GPU.but(name="x"), Table("t.csv", profile([1410]), {}), SETUP)
    for line in errors:
        assert line.held_out is not None and line.held_out < 0.02
    time, energy = worst(fitted.gpu, [1410])
    assert time < 0.015 and energy < 0.015
    assert worst(BASE_GPU, [1410])[0] > 0.15  # it had something to find
    assert {"tensor_efficiency", "dram_bytes_per_s"} <= set(fitted.uncertainty)
    for key in ("voltage_ratio", "knee_mhz", "load_bytes_per_cycle", "prefill_attention_efficiency"):
        assert key not in fitted.uncertainty
        assert getattr(fitted.gpu, key) == getattr(BASE_GPU, key)


@pytest.mark.slow
def test_several_clocks_give_the_law_of_power() -> None:
    rows = profile([705, 1005, 1200, 1410])[::2]
    fitted, _ = calibrate(BASE_GPU.but(name="x"), Table("t.csv", rows, {}), SETUP)
    for clock in (855, 1305):  # neither was in the table
        time, energy = worst(fitted.gpu, [clock])
        assert time < 0.015 and energy < 0.015
    assert fitted.gpu.voltage_ratio == pytest.approx(1.35, abs=0.03)
    assert fitted.gpu.tensor_efficiency == pytest.approx(0.72, rel=0.03)
    assert fitted.gpu.base_w == pytest.approx(80.0, rel=0.1)


@pytest.mark.slow
def test_without_energy_only_times_are_fitted() -> None:
    rows = [row._replace(energy_j=None) for row in profile([1410])]
    fitted, errors = calibrate(BASE_GPU, Table("t.csv", rows, {}), SETUP)
    assert [line.what for line in errors] == ["prefill time", "decode time"]
    assert not set(POWER) & set(fitted.uncertainty)
    assert all(getattr(fitted.gpu, key) == getattr(BASE_GPU, key) for key in POWER)


def test_a_card_describes_itself() -> None:
    about = {
        "gpu": {"sm_count": 132, "memory_gib": 139.8, "power_limit_w": 700.0, "clocks_mhz": list(range(345, 1981, 15))},
        "rates": {"1980": {"bytes_per_s": 4.1e12, "flop_per_s": 790e12}},
    }
    gpu = described(BASE_GPU, "h200", about)
    assert (gpu.clock_min_mhz, gpu.clock_max_mhz, gpu.clock_step_mhz) == (345, 1980, 15)
    assert (gpu.sm_count, gpu.memory_gib, gpu.power_limit_w) == (132, 139.8, 700.0)
    assert gpu.flops_per_cycle == 4096.0
    assert gpu.dram_bytes_per_s == 4.1e12
    assert described(BASE_GPU, "same", {}) == BASE_GPU.but(name="same")


@pytest.mark.slow
def test_the_yaml_is_the_gpu() -> None:
    fitted, errors = calibrate(BASE_GPU.but(name="mine"), Table("t.csv", profile([1410]), {}), SETUP)
    text = gpu_yaml(fitted, errors, Table("t.csv", profile([1410]), {}), BASE)
    read = parse(GpuSpec, yaml.safe_load(text), "gpu")
    assert read.name == "mine"
    for key in (*TIME, *POWER):
        assert getattr(read, key) == pytest.approx(getattr(fitted.gpu, key), rel=1e-3)
    assert "fifth held out" in text and f"kept, {BASE}" in text and "fitted, +-" in text


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["voltana.sim.calibration.kernels", *arguments])
    return voltana.sim.calibration.kernels.main()


@pytest.mark.slow
def test_from_table_to_simulation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from voltana.sim.run.commands import profile as voltana_profile

    write_profile(folder / "mine.csv", profile([1410]))
    about = {
        "format": "voltana-torch-profile-1",
        "model": {key: value for key, value in vars(SETUP.model).items() if key not in ("slo", "token_scale")},
        "graph_batches": list(BATCHES),
        "gpu": {"name": "NVIDIA Truth", "driver": "550.1"},
        "idle_w": {"1410": TRUTH.idle_power_w(1410)},
    }
    (folder / "mine.json").write_text(json.dumps(about))
    assert command(monkeypatch, "--table", "mine.csv", "--gpu", "mine") == 0
    assert "decode energy" in capsys.readouterr().out
    text = (folder / "gpu" / "mine.yaml").read_text()
    assert text.startswith("# NVIDIA Truth: fitted to mine.csv")
    fitted = parse(GpuSpec, yaml.safe_load(text), "gpu")
    assert fitted.idle_power_w(1410) == pytest.approx(TRUTH.idle_power_w(1410), rel=0.05)
    time, energy = worst(fitted, [1410])
    assert time < 0.04 and energy < 0.03
    small = (
        "profile.clocks_mhz=[1005,1410] profile.prefill.samples=4 profile.decode.samples=5 profile.decode.max_batch=8"
    )
    monkeypatch.setattr(sys, "argv", ["voltana-profile", "--config-dir", ".", "gpu=mine", *small.split()])
    voltana_profile()
    assert (folder / "profile.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--table", "none.csv", "--gpu", "x", "--model", "llama31_8b"], "none.csv: cannot be read"),
        (["--table", "few.csv", "--gpu", "x", "--model", "llama31_8b"], "few.csv: found 5 rows"),
        (["--table", "full.csv", "--gpu", "x"], "--model: missing"),
        (["--table", "broken.csv", "--gpu", "x"], "broken.json: no JSON"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    rows = profile([1410])
    for name in ("full", "broken"):
        write_profile(folder / f"{name}.csv", rows)
    write_profile(folder / "few.csv", rows[:5])
    (folder / "broken.json").write_text("{")
    assert command(monkeypatch, *arguments) == 2
    assert says in capsys.readouterr().err


def test_a_base_that_does_not_exist_is_refused(folder: Path) -> None:
    from voltana.sim.calibration.table import load_setup

    with pytest.raises(UserError, match="no_such_gpu"):
        load_setup(Table("t.csv", profile([1410]), {}), "no_such_gpu", "llama31_8b")

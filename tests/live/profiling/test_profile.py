"""A whole profile at tiny size: the code that runs on a GPU, on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from voltana.errors import UserError  # noqa: E402
from voltana.live.profiling.show import Show  # noqa: E402
from voltana.live.profiling.torch.device import Cpu  # noqa: E402
from voltana.live.profiling.torch.measure import Bench, through  # noqa: E402
from voltana.live.profiling.torch.roofline import Rates  # noqa: E402
from voltana.live.profiling.torch.run import Profile, profile_gpu  # noqa: E402
from voltana.live.profiling.torch.settings import Settings  # noqa: E402
from voltana.prediction.ecopred import EcoPred  # noqa: E402
from voltana.prediction.fit import fit_ecopred  # noqa: E402
from voltana.prediction.profile import read_profile  # noqa: E402
from voltana.section import parse  # noqa: E402
from voltana.sim.plant import EngineSpec, ModelSpec  # noqa: E402

Configuration = Callable[..., dict[str, Any]]
QUICK = {"window_s": 0.001, "windows": [2, 2], "tolerance": 1.0}


def take(values: dict[str, Any], out: Path, gpu: Any = None) -> Profile:
    """A profile, with a stand-in for the GPU's meters if given."""
    settings = parse(Settings, values["profile"], "profile")
    model = parse(ModelSpec, values["model"], "model")
    engine = parse(EngineSpec, values["serving"]["engine"], "engine")
    with Show(settings.budget_s) as show, torch.inference_mode():
        profile = Profile(Cpu(), model, engine, settings, out, show, gpu)
        profile.run()
        profile.write()
    return profile


def test_a_table_a_report_and_a_line_per_cell(
    configuration: Configuration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.csv"
    profile_gpu(configuration(), out)
    samples = read_profile(out)
    assert {s.phase for s in samples} == {"prefill", "decode"}
    assert all(s.energy_j is None and s.latency_s > 0 for s in samples)
    assert max(s.batch_size for s in samples if s.phase == "decode") == 6
    report = json.loads((tmp_path / "mine.json").read_text())
    assert report["software"]["torch"] == torch.__version__
    assert report["layers"] == {"model": 3, "run": [3], "stored": 3, "extrapolated": False}
    assert len(report["cells"]) == len(samples)
    assert all(cell["latency_s"] >= cell["floor_s"] > 0 and cell["windows"] >= 2 for cell in report["cells"])
    printed = capsys.readouterr().out
    assert printed.count("floor") == len(samples)
    assert "energy is empty" in printed


def test_energy_and_clocks(
    configuration: Configuration, fake_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voltana.live.profiling.torch.run.IDLE_S", 0.1)
    gpu, out = fake_gpu(power_w=250.0), tmp_path / "mine.csv"
    values = configuration({"tp": 2}, clocks_mhz=[1410, 1005], window_s=0.15, windows=[2, 2], budget_s=0.3)
    values["profile"]["decode"] = {"max_batch": 4, "tokens_per_request": [4, 32], "samples": 5}
    take(values, out, gpu)
    samples = read_profile(out)
    assert [s.clock_mhz for s in samples] == sorted(s.clock_mhz for s in samples)
    assert {s.clock_mhz for s in samples} == {1005, 1410}
    powers = [s.energy_j / s.latency_s for s in samples if s.energy_j]
    assert len(powers) == len(samples)
    assert sorted(powers)[len(powers) // 2] == pytest.approx(2 * 250.0, rel=0.05)  # two GPUs of the group
    assert gpu.calls == ["lock 1005", "reset", "lock 1005", "reset", "lock 1410", "reset"]
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["gpu"]["power_limit_w"] == 400.0 and report["gpu"]["clocks_mhz"][0] == 210
    assert report["idle_w"]["1005"] == pytest.approx(250.0, rel=0.05)
    assert any("no all-reduce" in note for note in report["notes"])
    fitted = fit_ecopred(samples)
    assert isinstance(fitted, EcoPred) and fitted.decode_s(2, 40, 1200) > 0


def test_without_the_privilege_the_clock_in_force_is_measured(
    configuration: Configuration,
    fake_gpu: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("voltana.live.profiling.torch.run.IDLE_S", 0.1)
    gpu = fake_gpu(privileged=False)
    take(configuration(clocks_mhz=[1005, 1410], budget_s=0.1, **QUICK), tmp_path / "mine.csv", gpu)
    assert len({s.clock_mhz for s in read_profile(tmp_path / "mine.csv")}) == 1
    assert "no privilege to set clocks" in capsys.readouterr().out
    assert gpu.calls == []


def test_an_interrupted_profile_goes_on(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, journal = tmp_path / "mine.csv", tmp_path / "mine.cells.jsonl"
    values = configuration(**QUICK)
    measure, calls = Bench.measure, []

    def interrupted(self: Bench, *arguments: Any) -> Any:
        calls.append(arguments[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(Bench, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile_gpu(values, out)
    kept = read_profile(out)
    assert len(kept) == 3
    with journal.open("a") as file:
        file.write('{"phase": "dec')  # a line cut off
    profile_gpu(values, out)
    assert read_profile(out)[:3] == kept
    assert not set(calls[4:]) & set(calls[:3])
    times = len(calls)
    values["profile"]["budget_s"] = 0.0
    profile_gpu(values, out)
    assert len(calls) == times


def test_a_journal_of_something_else_is_refused(configuration: Configuration, tmp_path: Path) -> None:
    profile_gpu(configuration(budget_s=0.01, **QUICK), tmp_path / "mine.csv")
    with pytest.raises(UserError, match=r"mine\.cells\.jsonl: holds cells of another profile \(model was "):
        profile_gpu(configuration({"ffn": 128}, budget_s=0.01, **QUICK), tmp_path / "mine.csv")
    (tmp_path / "mine.cells.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match="no journal of a profile"):
        profile_gpu(configuration(), tmp_path / "mine.csv")


def test_a_cell_below_its_floor_is_an_error_and_not_in_the_table(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voltana.live.profiling.torch.run.measure_rates", lambda *_: Rates(1e3, 1e7))
    out = tmp_path / "mine.csv"
    with pytest.raises(UserError, match="faster than memory and arithmetic allow"):
        profile_gpu(configuration(budget_s=0.05, **QUICK), out)
    assert json.loads(out.with_suffix(".json").read_text())["too_fast"]
    assert not out.exists() or len(read_profile(out)) < 9


def test_a_line_through_two_layer_counts() -> None:
    assert through([2, 6], [5.0, 9.0], 32) == pytest.approx(35.0)
    assert through([32], [7.0], 32) == 7.0


def test_extrapolation_is_reported(configuration: Configuration, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    profile_gpu(configuration({"layers": 12}, layers=[1, 3], budget_s=0.05, **QUICK), out)
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["layers"] == {"model": 12, "run": [1, 3], "stored": 3, "extrapolated": True}
    assert any("extrapolated" in note for note in report["notes"])


def test_fewer_layers_are_held_where_memory_is_short(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = configuration({"layers": 8}, budget_s=0.05, **QUICK)
    monkeypatch.setattr("voltana.live.profiling.torch.run.CPU_GEMM", 16)
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 60_000)
    with pytest.raises(UserError, match=r"profile\.device: found .* GiB free, allowed: "):
        profile_gpu(values, tmp_path / "none.csv")
    monkeypatch.setattr(Cpu, "free_bytes", lambda self: 200_000)
    profile_gpu(values, tmp_path / "mine.csv")
    layers = json.loads((tmp_path / "mine.json").read_text())["layers"]
    assert layers["run"] == [8] and 1 <= layers["stored"] < 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": "cuda:99"}, "profile.device: found cuda:99"),
        ({"device": "tpu"}, "profile.device: found 'tpu'"),
        ({"attention": "magic"}, "profile.attention: found 'magic'"),
        ({"windows": [3]}, "profile.windows: found"),
        ({"layers": [4, 4]}, "profile.layers: found [4, 4]"),
        ({"tolerance": 0}, "profile.tolerance: found 0"),
        ({"prefill": 3}, "profile.prefill: found 3"),
        ({"decode": {"max_batch": 4}}, "profile.decode.tokens_per_request: missing"),
        ({"budget": 3}, "profile.budget: unknown key"),
        ({"clocks_mhz": [1005, 1410]}, "profile.clocks_mhz: found [1005, 1410], allowed without NVML"),
    ],
)
def test_bad_settings_are_one_line(configuration: Configuration, tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        profile_gpu(configuration(**change), tmp_path / "mine.csv")
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_named_gpu_is_refused(configuration: Configuration, tmp_path: Path) -> None:
    values = {**configuration(), "gpu": {"name": "a100_sxm4_80g"}}
    with pytest.raises(UserError, match="gpu: found a100_sxm4_80g, allowed with source=torch: auto"):
        profile_gpu(values, tmp_path / "mine.csv")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(configuration: Configuration, tmp_path: Path) -> None:
    """CUDA graphs, device events and NVML: what the CPU cannot show. Clocks are left alone."""
    model = {"layers": 4, "hidden": 2048, "ffn": 8192, "heads": 16, "kv_heads": 4, "head_dim": 128, "vocab": 32000}
    out = tmp_path / "mine.csv"
    profile_gpu(configuration(model, device="cuda", window_s=0.1, windows=[3, 5], budget_s=10.0), out)
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["too_fast"] == []
    assert all(cell["latency_spread"] < 0.2 for cell in report["cells"])
    assert {s.phase for s in read_profile(out)} == {"prefill", "decode"}

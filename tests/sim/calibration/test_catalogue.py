"""The catalogue: fits find what made a table, shipped errors keep their targets, documentation shows them."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from voltana.sim.calibration import catalogue, kernels, served
from voltana.sim.plant import EngineSpec, GpuSpec
from voltana.sim.plant.operators import ExpertLoad, Operators

ROOT = Path(__file__).parents[3]
LINE = re.compile(r"^# \| (?P<group>[^|]+) \| (?P<fitted>[^|]+) \| (?P<predicted>[^|]+) \|$", re.MULTILINE)
TARGETS = {"step": 5.0, "decode attention": 15.0, "prefill attention": 15.0, "power under load": 6.0}


def file(name: str) -> Path:
    return ROOT / "conf" / "gpu" / f"{name}.yaml"


def lines(name: str) -> list[re.Match[str]]:
    return [m for m in LINE.finditer(file(name).read_text()) if "---" not in m[0] and m["group"] != "measurement"]


@pytest.mark.parametrize("name", catalogue.GPUS)
def test_every_error_of_a_shipped_gpu_is_within_its_target(name: str) -> None:
    told = {m["group"]: [float(e) for e in re.findall(r"([\d.]+) %", m[0])] for m in lines(name)}
    assert {f"step {model} {phase}" for model in catalogue.STEPS for phase in ("prefill", "decode")} <= set(told)
    for group, errors in told.items():
        most = next((target for start, target in TARGETS.items() if group.startswith(start)), 30.0)
        assert errors and max(errors) <= most, group


def test_the_documentation_shows_every_error() -> None:
    table = (ROOT / "docs" / "catalogue.md").read_text()
    for place, name in enumerate(catalogue.GPUS):
        for m in lines(name):
            row = next(line for line in table.splitlines() if line.startswith(f"| {m['group']} |"))
            assert [cell.strip() for cell in row.split("|")][2 + 2 * place : 4 + 2 * place] == [
                m["fitted"],
                m["predicted"],
            ]


@pytest.mark.parametrize("name", catalogue.GPUS)
def test_power_is_scaled_exactly_where_no_campaign_measured_it(name: str) -> None:
    gpu, source = kernels.load_gpu(file(name)), catalogue.GPUS[name]
    assert (gpu.power == "measured") == (source.campaign is not None)
    if gpu.power == "scaled":
        expected = kernels.rounded(catalogue.scaled_power(gpu, kernels.load_gpu(file(catalogue.RELATIVE))))
        assert [getattr(gpu, key) for key in served.POWER] == [getattr(expected, key) for key in served.POWER]


def write(folder: Path, family: str, table: str, rows: pd.DataFrame) -> None:
    path = folder / family / catalogue.BACKEND / catalogue.VERSION
    path.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path / f"{table}_perf.parquet")


def made_tables(folder: Path, gpu: GpuSpec) -> None:
    """Tables of a GPU whose every constant is known."""
    ops = Operators(gpu, gpu.clock_max_mhz)
    shapes = [
        (m, n, k) for m in (1, 16, 64, 128, 256, 1024, 4096) for n in (2048, 4096, 8192, 16384) for k in (2048, 8192)
    ]
    write(folder, "gemm", "gemm", pd.DataFrame([
        {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": 1e3 * ops.gemm(m, n, k, 2).seconds}
        for m, n, k in shapes
    ]))  # fmt: skip
    plain = {
        "kernel_source": "fa3",
        "head_dim": 128,
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "window_size": 0,
    }
    loads = [(heads, groups, b) for heads, groups in ((32, 8), (64, 4)) for b in (1, 4, 16, 64, 256)]
    write(folder, "attention", "generation_attention", pd.DataFrame([
        {**plain, "batch_size": b, "num_heads": heads, "num_key_value_heads": groups, "step": c - 1,
         "latency": 1e3 * ops.decode_attention(b * groups, c, 512.0).seconds}
        for heads, groups, b in loads for c in (1, 64, 128, 512, 1024, 4096, 16384)
    ]))  # fmt: skip
    write(folder, "attention", "context_attention", pd.DataFrame([
        {**plain, "batch_size": b, "num_heads": heads, "num_key_value_heads": groups, "isl": c,
         "latency": 1e3 * kernels.prefill_attention(heads, groups, b, c, ops).seconds}
        for heads, groups, b in loads for c in (64, 256, 1024, 4096)
    ]))  # fmt: skip
    write(folder, "comm", "custom_allreduce", pd.DataFrame([
        {"backend": "sglang_graph", "num_gpus": n, "message_size": s,
         "latency": 1e3 * ops.all_reduce(n, 2.0 * s).seconds}
        for n in (2, 4, 8) for s in (2**10, 2**16, 2**22, 2**26)
    ]))  # fmt: skip
    mixture = {"moe_dtype": "bfloat16", "kernel_source": "sglang_fused_moe_triton", "distribution": "power_law_1.01"}
    write(folder, "moe", "moe", pd.DataFrame([
        {**mixture, "moe_ep_size": 1, "hidden_size": 2048, "inter_size": inter, "topk": 8, "num_experts": 128,
         "moe_tp_size": slices, "num_tokens": tokens,
         "latency": 1e3 * ops.experts(ExpertLoad.of(8.0 * tokens, 128.0), 2048, inter // slices, 2, 2.0).seconds}
        for inter in (768, 1536) for slices in (1, 2, 4) for tokens in (1, 8, 64, 512, 4096, 16384)
    ]))  # fmt: skip


@pytest.mark.slow
def test_a_fit_finds_the_constants_that_made_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "GEMM_STRIDE", 2)
    shipped = kernels.load_gpu(file("h100_sxm"))
    truth = shipped.but(
        dram_bytes_per_s=2.5e12, tensor_efficiency=0.65, attention_unit_cycles=50.0, link_bytes_per_s=2e11
    )
    made_tables(tmp_path, truth)
    tables = catalogue.Tables(tmp_path, catalogue.GPUS["h100_sxm"], shipped.dram_bytes_per_s)
    found = catalogue.calibrate(shipped, tables)
    for key in (
        "dram_bytes_per_s",
        "tensor_efficiency",
        "link_bytes_per_s",
        "prefill_attention_efficiency",
        "expert_start_s",
    ):
        assert getattr(found, key) == pytest.approx(getattr(truth, key), rel=0.03), key
    errors = kernels.error_lines(
        found.but(power_limit_w=catalogue.UNLIMITED_W), [*tables.gemm(), *tables.decode_attention()]
    )
    assert all(line.predicted_error is not None and line.predicted_error < 0.02 for line in errors)


def campaign(gpu: GpuSpec, engine: EngineSpec) -> list[served.Served]:
    plant = served.Plant(gpu, kernels.load_model("llama33_70b"), engine)
    loads = [
        served.Served(clock, rate, 1023, 99, 1.0) for clock in (780, 1080, 1380, 1680, 1830) for rate in (0.5, 2.0, 4.0)
    ]
    return [served.Served(*load_of(load), served.mean_power_w(plant, load)) for load in loads]


def load_of(row: served.Served) -> tuple[int, float, int, int]:
    return row.clock_mhz, row.requests_per_s, row.input_tokens, row.output_tokens


@pytest.mark.slow
def test_power_is_found_again_from_a_campaign_it_made() -> None:
    gpu = kernels.load_gpu(file("h100_sxm"))
    truth = gpu.but(base_w=80.0, idle_w=42.0, tensor_w=900.0, knee_mhz=1100.0)
    model, rows = kernels.load_model("llama33_70b"), campaign(truth, EngineSpec(host_decode_s=0.002))
    found, engine = served.fit_served(gpu, model, rows, idle_w=122.0)
    assert float(np.abs(served.errors(found, model, engine, rows)).mean()) < 0.01


@pytest.mark.parametrize("name", catalogue.GPUS)
def test_more_requests_and_a_higher_clock_draw_more(name: str) -> None:
    plant = served.Plant(kernels.load_gpu(file(name)), kernels.load_model("llama33_70b"), EngineSpec())
    clocks = plant.gpu.clocks()
    power = np.array([
        [served.mean_power_w(plant, served.Served(clock, rate, 1023, 99, 1.0)) for rate in (0.2, 1.0, 3.0)]
        for clock in (clocks[30], clocks[60], clocks[-1])
    ])  # fmt: skip
    assert (np.diff(power, axis=0) > 0).all() and (np.diff(power, axis=1) > 0).all()
    assert (power > plant.idle_power_w(clocks[0])).all() and (power < 4 * plant.gpu.power_limit_w).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpu", "v100"], "--gpu: found 'v100', allowed: h100_sxm, h200_sxm, b200_sxm"),
        pytest.param(
            ["--gpu", "h200_sxm"],
            "pip install 'voltana[catalogue]'",
            marks=pytest.mark.skipif(find_spec("aiconfigurator_core") is not None, reason="the extra is installed"),
        ),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["catalogue", *arguments])
    assert catalogue.main() == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("aiconfigurator_core") is None, reason="no extra catalogue")
@pytest.mark.parametrize("name", ["h200_sxm", "b200_sxm"])
def test_the_shipped_constants_are_the_fitted_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["catalogue", "--gpu", name, "--check"])
    assert catalogue.main() == 0

"""The plant: golden numbers, its lines, its refusals."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.plant.operators import gemm_waves

CONF = Path(__file__).parents[3] / "conf"


def section(group: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return values


GPU = parse(GpuSpec, section("gpu", "a100_sxm4_80g_calibrated"), "gpu")
LLAMA = parse(ModelSpec, section("model", "llama31_8b"), "model")
EAGER = EngineSpec(cuda_graph=False, eager_launch_s=34e-6)


def whole(n: int) -> float:
    return n * (n + 1) / 2


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "model").glob("*.yaml")) if path.stem != "hf"])
def test_every_shipped_model_runs_from_its_architecture(name: str) -> None:
    plant = Plant(GPU, parse(ModelSpec, section("model", name), "model"), EngineSpec())
    assert plant.kv_capacity_tokens > 100_000
    assert 0.001 < plant.decode(8, 4000, 1410).duration_s < 0.1
    assert 0.01 < plant.prefill(1, 1000, whole(1000), 1410).duration_s < 1.0


def test_golden_sizes() -> None:
    assert LLAMA.parameters() == 8_029_995_008  # published 8.03 B, norms (0.3 M) left out
    plant = Plant(GPU, LLAMA, EngineSpec())
    assert plant.kv_bytes_per_token == 131_072
    assert plant.kv_capacity_tokens == int((0.85 * 80 * 2**30 - 2 * 8_029_995_008) / 131_072)
    assert parse(ModelSpec, section("model", "qwen3_32b"), "model").parameters() == pytest.approx(32.8e9, rel=0.01)
    assert parse(ModelSpec, section("model", "ministral_3b"), "model").parameters() == pytest.approx(3.316e9, rel=0.001)


def test_golden_steps() -> None:
    """Composed from measured kernels (aiconfigurator, SGLang 0.5.10): 134.2, 11.3 and 22.7 ms."""
    plant = Plant(GPU, LLAMA, EngineSpec(graph_batches=tuple(range(1, 257))))
    assert plant.prefill(1, 2048, whole(2048), 1410).duration_s == pytest.approx(0.1342, rel=0.06)
    assert plant.decode(1, 128, 1410).duration_s == pytest.approx(0.01133, rel=0.06)
    assert plant.decode(128, 128 * 512, 1410).duration_s == pytest.approx(0.0227, rel=0.06)


def test_power_law() -> None:
    assert GPU.dynamic_scale(1410) == 1.0
    assert GPU.dynamic_scale(1005) == pytest.approx(0.476, abs=0.01)
    assert GPU.idle_power_w(1410) == pytest.approx(GPU.base_w + GPU.idle_w)
    assert GPU.bandwidth(1410) / GPU.bandwidth(1110) < 1.05 < GPU.bandwidth(1110) / GPU.bandwidth(600)


def test_supported_clocks() -> None:
    assert GPU.clocks()[0] == 210
    assert GPU.clocks()[-1] == 1410
    assert len(GPU.clocks()) == 81
    assert GPU.supports(1005)
    assert not GPU.supports(1000)
    assert not GPU.supports(1425)


def test_gemm_staircase() -> None:
    """129 rows cost a second row of tiles; 65 to 128 rows cost the same."""
    waves = [gemm_waves(rows, 51200, 108, GPU.tile_overhead) for rows in (65, 128, 129)]
    assert waves[0] == waves[1] < waves[2]


def test_prefill_throttles_at_the_power_limit() -> None:
    plant = Plant(GPU, LLAMA, EngineSpec())
    step = plant.prefill(4, 8192, 4 * whole(2048), 1410)
    assert step.power_w == pytest.approx(400.0)
    assert 1200 < step.clock_mhz < 1410
    assert (
        step.duration_s
        > Plant(GPU.but(power_limit_w=1000), LLAMA, EngineSpec()).prefill(4, 8192, 4 * whole(2048), 1410).duration_s
    )
    assert plant.prefill(4, 8192, 4 * whole(2048), 1005).clock_mhz == 1005


def test_a_power_limit_below_the_lowest_clock_is_given_up() -> None:
    step = Plant(GPU.but(power_limit_w=50), LLAMA, EngineSpec()).prefill(1, 512, whole(512), 1410)
    assert step.clock_mhz == 210
    assert step.power_w > 50


def test_decode_is_padded_to_captured_batches() -> None:
    plant = Plant(GPU, LLAMA, EngineSpec())
    assert plant.decode(17, 0, 1410).duration_s == pytest.approx(plant.decode(24, 0, 1410).duration_s, rel=0.01)
    bare = Plant(GPU, LLAMA, EngineSpec(cuda_graph=False))
    assert bare.decode(129, 0, 1410).duration_s < plant.decode(129, 0, 1410).duration_s * 1.001
    assert EngineSpec().padded(257) == 257


@pytest.mark.parametrize("engine", [EngineSpec(), EAGER, EngineSpec(prefill_activity=1.6, decode_activity=1.6)])
@pytest.mark.parametrize("batch", [1, 24, 300])
def test_decode_lies_on_its_lines(engine: EngineSpec, batch: int) -> None:
    plant = Plant(GPU, LLAMA, engine)
    kv_tokens = 0.0
    for _ in range(40):
        t0, t1, e0, e1, end = plant.decode_line(batch, 1410, kv_tokens)
        assert end > kv_tokens
        for kv in (kv_tokens, (kv_tokens + min(end, 400_000.0)) / 2):
            step = plant.decode(batch, kv, 1410)  # type: ignore[arg-type]
            assert step.duration_s == pytest.approx(t0 + t1 * kv, rel=1e-12)
            assert step.duration_s * step.power_w == pytest.approx(e0 + e1 * kv, rel=1e-12)
        if end > 400_000.0:
            break
        after = plant.decode_line(batch, 1410, end)
        assert after.t0_s + after.t_per_token_s * end == pytest.approx(t0 + t1 * end, rel=1e-9)
        assert after.e0_j + after.e_per_token_j * end == pytest.approx(e0 + e1 * end, rel=1e-9)
        kv_tokens = end
    assert end > 400_000.0


def test_iterations_sum_in_closed_form() -> None:
    plant = Plant(GPU, LLAMA, EngineSpec())
    batch, kv, k = 64, 64 * 600, 100
    t0, t1, e0, e1, end = plant.decode_line(batch, 1005, kv)
    assert kv + k * batch < end
    steps = [plant.decode(batch, kv + i * batch, 1005) for i in range(k)]
    tokens = k * kv + batch * k * (k - 1) / 2
    assert sum(s.duration_s for s in steps) == pytest.approx(k * t0 + t1 * tokens, rel=1e-12)
    assert sum(s.duration_s * s.power_w for s in steps) == pytest.approx(k * e0 + e1 * tokens, rel=1e-12)


def test_eager_launches_bound_small_batches() -> None:
    plant = Plant(GPU, LLAMA, EAGER)
    line = plant.decode_line(1, 1410)
    assert line.t_per_token_s == 0.0
    assert plant.decode_line(1, 1410, 1e6).t_per_token_s > 0.0
    assert plant.decode(1, 100, 1410).duration_s > Plant(GPU, LLAMA, EngineSpec()).decode(1, 100, 1410).duration_s


def test_engine_effects_have_their_meaning() -> None:
    plain = Plant(GPU, LLAMA, EngineSpec())
    host = Plant(GPU, LLAMA, EngineSpec(host_decode_s=0.002, host_prefill_s=0.003))
    assert host.decode(8, 100, 1005).duration_s == pytest.approx(plain.decode(8, 100, 1005).duration_s + 0.002)
    added_j = host.decode_line(8, 1005).e0_j - plain.decode_line(8, 1005).e0_j
    assert added_j == pytest.approx(0.002 * plain.idle_power_w(1005))
    slow = Plant(GPU, LLAMA, EngineSpec(prefill_slowdown=1.6))
    ratio = [p.prefill(4, 4096, 4 * whole(1024), 1005).duration_s for p in (slow, plain)]
    assert 1.45 < ratio[0] / ratio[1] <= 1.6
    hot = Plant(GPU, LLAMA, EngineSpec(prefill_activity=1.1, decode_activity=1.1))
    assert hot.decode(8, 100, 1005).power_w > plain.decode(8, 100, 1005).power_w
    assert hot.idle_power_w(1005) == plain.idle_power_w(1005)


def test_tensor_parallel_group_counts_every_gpu() -> None:
    pair = Plant(GPU, LLAMA.but(tp=2), EngineSpec())
    single = Plant(GPU, LLAMA, EngineSpec())
    assert pair.idle_power_w(1005) == 2 * single.idle_power_w(1005)
    assert single.decode(64, 30_000, 1005).duration_s / pair.decode(64, 30_000, 1005).duration_s > 1.3


@pytest.mark.parametrize(
    ("spec", "group", "name", "key", "value"),
    [
        (GpuSpec, "gpu", "a100_sxm4_80g_calibrated", "base_w", -1),
        (GpuSpec, "gpu", "a100_sxm4_80g_calibrated", "clock_step_mhz", 7.5),
        (GpuSpec, "gpu", "a100_sxm4_80g_calibrated", "bandwidth_curve", [[900, 1], [500, 0.6]]),
        (GpuSpec, "gpu", "a100_sxm4_80g_calibrated", "voltage", 1),
        (ModelSpec, "model", "llama31_8b", "kv_heads", 5),
        (ModelSpec, "model", "llama31_8b", "slo", {"ttft_ms": 600}),
        (ModelSpec, "model", "llama31_8b", "layers", True),
        (ModelSpec, "model", "llama31_8b", "tp", 3),
    ],
)
def test_bad_value_is_named_in_one_line(spec: Any, group: str, name: str, key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^{group}\.{key}\b.*allowed") as caught:
        parse(spec, {**section(group, name), key: value}, group)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("graph_batches", [4, 2]), ("mem_fraction", 1.5), ("cuda_graph", "yes"), ("host_decode_s", float("nan"))],
)
def test_bad_engine_value_is_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^engine\.{key}"):
        parse(EngineSpec, {key: value}, "engine")


def test_missing_key_and_too_large_a_model_are_named() -> None:
    values = section("gpu", "a100_sxm4_80g_calibrated")
    del values["base_w"]
    with pytest.raises(UserError, match=r"gpu\.base_w: missing"):
        parse(GpuSpec, values, "gpu")
    with pytest.raises(UserError, match=r"model\.tp: found 1"):
        Plant(GPU, LLAMA.but(layers=400), EngineSpec())

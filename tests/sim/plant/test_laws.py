"""Laws of the plant: more load never takes less time, a higher clock never takes more, power keeps its limit."""

from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.section import parse
from voltana.sim.calibration.kernels import load_gpu, load_model
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.plant.operators import Operators

CONF = Path(__file__).parents[3] / "conf"
GPU = load_gpu()
LLAMA = parse(ModelSpec, yaml.safe_load((CONF / "model" / "llama31_8b.yaml").read_text()), "model")
CATALOGUE = ("h100_sxm", "h200_sxm", "b200_sxm")
MODELS = ("qwen3_30b_a3b", "mixtral_8x7b", "gpt_oss_120b", "llama33_70b", "qwen3_8b")
CLOCKS = st.integers(0, 10_000)
EXACT = 1.0 + 1e-9
CHORD = 1.003
"""Chords under the power limit may miss a curve by this."""


def shipped(name: str) -> GpuSpec:
    return load_gpu(CONF / "gpu" / f"{name}.yaml")


def clock_of(p: Plant, drawn: int) -> int:
    """A clock that the plant's GPU has."""
    clocks = p.gpu.clocks()
    return clocks[drawn % len(clocks)]


@lru_cache
def plant(kind: int) -> Plant:
    if kind > 3 + len(CATALOGUE):
        return Plant(shipped("h100_sxm"), load_model(MODELS[kind - 4 - len(CATALOGUE)]), EngineSpec())
    if kind > 3:
        return Plant(shipped(CATALOGUE[kind - 4]), LLAMA, EngineSpec())
    model = LLAMA.but(tp=2) if kind == 1 else LLAMA
    engines = (
        EngineSpec(),
        EngineSpec(graph_batches=(8, 64, 512, 2048), prefill_slowdown=1.6, decode_slowdown=1.3, host_decode_s=0.002),
        EngineSpec(cuda_graph=False, eager_launch_s=34e-6),
        EngineSpec(prefill_activity=1.8, decode_activity=1.8),
    )
    return Plant(GPU, model, engines[kind])


PLANTS = st.integers(0, 3 + len(CATALOGUE) + len(MODELS)).map(plant)


@settings(max_examples=150, deadline=None)
@given(PLANTS, st.integers(1, 700), st.integers(0, 2000), st.integers(0, 100_000), CLOCKS)
def test_decode_time_grows_with_load(p: Plant, batch: int, context: int, more: int, clock: int) -> None:
    clock = clock_of(p, clock)
    kv = batch * context
    base = p.decode(batch, kv, clock).duration_s
    assert base > 0.0
    assert p.decode(batch, kv + more, clock).duration_s * EXACT >= base
    assert p.decode(batch + 1, kv + context, clock).duration_s * CHORD >= base


@settings(max_examples=150, deadline=None)
@given(PLANTS, st.integers(1, 700), st.integers(0, 400_000), CLOCKS, CLOCKS)
def test_decode_follows_the_clock(p: Plant, batch: int, kv: int, one: int, other: int) -> None:
    one, other = clock_of(p, one), clock_of(p, other)
    slow, fast = (p.decode(batch, kv, clock) for clock in sorted((one, other)))
    assert fast.duration_s <= slow.duration_s * CHORD
    assert fast.power_w * CHORD >= slow.power_w
    assert fast.clock_mhz <= max(one, other) * EXACT


@settings(max_examples=150, deadline=None)
@given(
    PLANTS,
    st.integers(1, 40),
    st.integers(1, 16_000),
    st.integers(0, 4000),
    st.floats(0, 1e8),
    st.floats(0, 1e7),
    CLOCKS,
)
def test_prefill_time_grows_with_load(
    p: Plant, requests: int, tokens: int, more: int, pairs: float, more_pairs: float, clock: int
) -> None:
    clock = clock_of(p, clock)
    base = p.prefill(requests, tokens, pairs, clock).duration_s
    assert p.prefill(requests, tokens + more, pairs, clock).duration_s * EXACT >= base
    assert p.prefill(requests, tokens, pairs + more_pairs, clock).duration_s * EXACT >= base
    assert p.prefill(requests + 30, tokens, pairs, clock).duration_s * EXACT >= base


@settings(max_examples=150, deadline=None)
@given(PLANTS, st.integers(1, 16_000), st.floats(0, 1e8), CLOCKS, CLOCKS)
def test_prefill_follows_the_clock(p: Plant, tokens: int, pairs: float, one: int, other: int) -> None:
    one, other = clock_of(p, one), clock_of(p, other)
    slow, fast = (p.prefill(1, tokens, pairs, clock) for clock in sorted((one, other)))
    assert fast.duration_s <= slow.duration_s * EXACT
    assert fast.power_w * EXACT >= slow.power_w
    assert fast.clock_mhz <= max(one, other)


@settings(max_examples=150, deadline=None)
@given(PLANTS, st.integers(1, 700), st.integers(0, 400_000), CLOCKS)
def test_power_stays_between_idle_and_the_limit(p: Plant, batch: int, kv: int, clock: int) -> None:
    clock = clock_of(p, clock)
    limit = p.model.tp * p.gpu.power_limit_w
    for step in (p.decode(batch, kv, clock), p.prefill(batch, max(1, kv // 25), float(kv) ** 1.4, clock)):
        assert p.idle_power_w(step.clock_mhz) < step.power_w * CHORD
        assert step.power_w <= limit * EXACT


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(0, 400_000), CLOCKS)
def test_answers_do_not_depend_on_what_was_asked_before(batch: int, kv: int, clock: int) -> None:
    clock = clock_of(plant(3), clock)
    fresh = Plant(GPU, LLAMA, EngineSpec(prefill_activity=1.8, decode_activity=1.8))
    assert fresh.decode(batch, kv, clock) == plant(3).decode(batch, kv, clock)
    assert fresh.prefill(1, 1 + kv // 50, 1e4, clock) == plant(3).prefill(1, 1 + kv // 50, 1e4, clock)


@pytest.mark.parametrize(
    ("name", "nvlink_bytes_per_s"),
    [("a100_sxm4_80g_calibrated", 300e9), ("h100_sxm", 450e9), ("h200_sxm", 450e9), ("b200_sxm", 900e9)],
)
def test_an_all_reduce_gets_half_to_all_of_what_nvlink_carries_one_way(name: str, nvlink_bytes_per_s: float) -> None:
    size = 512e6
    seconds = Operators(shipped(name), 1410).all_reduce(2, size).seconds
    assert 0.5 < size / seconds / nvlink_bytes_per_s < 1.0

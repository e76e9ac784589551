"""Mixtures of experts, sliding windows and 8-bit weights: what they hold, how long they take, what does not fit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.calibration.kernels import load_gpu, load_model
from voltana.sim.plant import EngineSpec, ModelSpec, Plant
from voltana.sim.plant.operators import ExpertLoad
from voltana.sim.plant.transformer import Transformer

H100 = load_gpu(Path(__file__).parents[3] / "conf" / "gpu" / "h100_sxm.yaml")
QWEN, LLAMA, GPT_OSS = (load_model(name) for name in ("qwen3_30b_a3b", "llama31_8b", "gpt_oss_120b"))


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("qwen3_30b_a3b", 30.5, 3.3), ("mixtral_8x7b", 46.7, 12.9), ("llama33_70b", 70.6, 70.6), ("qwen3_8b", 8.19, 8.19)],
)
def test_weights_are_as_many_as_published(name: str, billions: float, active: float) -> None:
    model = load_model(name)
    assert model.parameters() / 1e9 == pytest.approx(billions, rel=0.01)
    assert model.active_parameters() / 1e9 == pytest.approx(active, rel=0.02)


def test_four_bit_experts_are_as_large_as_the_published_files() -> None:
    assert GPT_OSS.parameters() / 1e9 == pytest.approx(116.8, rel=0.01)
    assert GPT_OSS.weights_size_bytes() / 1e9 == pytest.approx(65.2, rel=0.02)


@given(st.floats(0.5, 1e6), st.floats(0.0, 1e6), st.integers(1, 512))
def test_more_pairs_hit_more_experts_and_fill_more_rows(pairs: float, more: float, experts: int) -> None:
    one, other = (ExpertLoad.of(p, float(experts)) for p in (pairs, pairs + more))
    assert 0.0 < one.hit <= other.hit * (1 + 1e-12) <= experts * (1 + 1e-9)
    assert one.hit <= max(1.0, pairs) * (1 + 1e-9)
    assert one.pairs <= one.tile_rows(0.0) * (1 + 1e-9)
    assert one.tile_rows(30.0) <= other.tile_rows(30.0) * (1 + 1e-9)


def test_a_few_tokens_read_a_few_experts_and_many_read_all() -> None:
    plant, dense = Plant(H100, QWEN, EngineSpec()), QWEN.active_parameters() * 2
    alone, many = (plant.decode(batch, 100 * batch, 1980).duration_s for batch in (1, 256))
    floor_s = dense / H100.dram_bytes_per_s
    assert floor_s < alone < 4 * floor_s
    assert many > QWEN.parameters() * 2 / H100.dram_bytes_per_s


def test_skewed_routing_reads_fewer_experts() -> None:
    even, skewed = (Plant(H100, QWEN.but(routing_skew=skew), EngineSpec()).decode(8, 800, 1980) for skew in (1.0, 0.3))
    assert skewed.duration_s < even.duration_s


def test_experts_spread_over_gpus_exchange_tokens() -> None:
    """Whole experts on each GPU keep their width, so there are fewer, and all-to-all replaces the all-reduce."""
    sliced, spread = (Plant(H100, QWEN.but(tp=4, ep=ep), EngineSpec()) for ep in (1, 4))
    assert sliced.kv_capacity_tokens == spread.kv_capacity_tokens
    assert sliced.decode(64, 6400, 1980).duration_s != spread.decode(64, 6400, 1980).duration_s


@pytest.mark.parametrize("context", [100, 128, 200, 300, 512, 700, 5000])
def test_windowed_layers_look_no_further_than_the_window(context: int) -> None:
    """Piecewise lines against the operators themselves."""
    windowed = LLAMA.but(window=128, window_layers=32)
    plant, net = Plant(H100, windowed, EngineSpec()), Transformer(windowed)
    seconds = [plant.decode(16, 16 * tokens, 1980).duration_s for tokens in (128, max(128, context))]
    assert seconds[0] == pytest.approx(seconds[1], rel=1e-9)
    full = Plant(H100, LLAMA, EngineSpec()).decode(16, 16 * context, 1980).duration_s
    assert plant.decode(16, 16 * context, 1980).duration_s <= full * (1 + 1e-9)
    pairs = 7.0 * context * (context + 1) / 2
    seen = net.attended_pairs(7 * context, pairs)
    exact = 7.0 * sum(min(place, 128) for place in range(1, context + 1))
    assert seen == pytest.approx(exact, rel=1e-9)


@given(st.integers(1, 5000), st.integers(1, 40_000), st.integers(0, 40_000))
def test_windowed_pairs_grow_with_the_pairs(tokens: int, length: int, more: int) -> None:
    net = Transformer(GPT_OSS)
    few, many = (net.attended_pairs(tokens, tokens * (n + 1) / 2) for n in (length, length + more))
    assert few <= many * (1 + 1e-9)
    assert many <= tokens * (length + more + 1) / 2 * (1 + 1e-9)


def test_eight_bit_weights_are_half_the_memory_and_faster() -> None:
    wide, narrow = (Plant(H100, LLAMA.but(weight_bytes=size), EngineSpec()) for size in (None, 1.0))
    assert LLAMA.but(weight_bytes=1.0).weights_size_bytes() < 0.6 * LLAMA.weights_size_bytes()
    assert narrow.decode(1, 100, 1980).duration_s < 0.7 * wide.decode(1, 100, 1980).duration_s
    assert narrow.prefill(1, 8192, 8192 * 4096, 1980).duration_s < wide.prefill(1, 8192, 8192 * 4096, 1980).duration_s
    halved = Plant(H100, LLAMA.but(kv_bytes=1.0), EngineSpec())
    assert halved.kv_capacity_tokens == pytest.approx(2 * wide.kv_capacity_tokens, rel=1e-4)


def test_a_model_that_does_not_fit_says_how_many_gpus_it_needs() -> None:
    with pytest.raises(UserError, match=r"model\.tp: found 1, .*at least 4$"):
        Plant(H100, load_model("llama33_70b").but(tp=1, layers=120), EngineSpec())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ep": 2}, "ep"),
        ({"experts_per_token": 0}, "experts_per_token from 1 to 128"),
        ({"expert_layers": 0}, "expert_layers"),
        ({"experts": 0}, "expert_layers"),
        ({"window": 128}, "window_layers"),
        ({"window_layers": 49, "window": 1}, "window_layers up to layers = 48"),
        ({"routing_skew": 0.0}, "routing_skew"),
    ],
)
def test_what_makes_no_mixture_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(ModelSpec, {**vars(QWEN), **changes}, "model")

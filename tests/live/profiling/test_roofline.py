"""The least time of a cell, by hand."""

import pytest

from voltana.live.profiling.cells import Cell
from voltana.live.profiling.torch.blocks import Shapes
from voltana.live.profiling.torch.roofline import Rates, floor
from voltana.sim.plant import ModelSpec

LLAMA = ModelSpec(
    name="llama",
    layers=32,
    hidden=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    tp=1,
    slo={"ttft_ms": 600, "itl_ms": 60},
    token_scale=0.8,
)
RATES = Rates(bytes_per_s=2e12, flop_per_s=300e12)


def test_weights_are_those_of_the_model() -> None:
    shapes = Shapes.of(LLAMA)
    assert 32 * shapes.layer_weights + 2 * shapes.head_weights == LLAMA.parameters()
    assert 32 * shapes.kv_elements * 2 == LLAMA.kv_bytes_per_token()


def test_a_tensor_parallel_share_is_a_part() -> None:
    whole = Shapes.of(LLAMA)
    half = Shapes.of(LLAMA.but(tp=2))
    assert half.layer_weights * 2 == whole.layer_weights
    assert half.head_weights * 2 == whole.head_weights
    assert (half.heads, half.kv_heads, half.ffn) == (16, 4, 7168)


def test_decode_of_one_request_reads_all_weights_and_its_keys() -> None:
    shapes, cell = Shapes.of(LLAMA), Cell("decode", 1, 1000)
    found = floor(shapes, cell, 1, 32, 32, 0, RATES)
    read = 2 * (32 * shapes.layer_weights + shapes.head_weights) + 1000 * LLAMA.kv_bytes_per_token()
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(read / 2e12)
    cached = floor(shapes, cell, 1, 32, 32, 40 * 2**20, RATES)
    assert cached.seconds == pytest.approx((read - 40 * 2**20) / 2e12)
    round_and_round = floor(shapes, cell, 1, 32, 4, 40 * 2**20, RATES)
    assert round_and_round.seconds == pytest.approx((read - 8 * 40 * 2**20) / 2e12)


def test_prefill_is_bound_by_arithmetic() -> None:
    shapes = Shapes.of(LLAMA)
    found = floor(shapes, Cell("prefill", 4, 1000), 4000, 32, 32, 0, RATES)
    gemm = 2 * 4000 * 32 * shapes.layer_weights + 2 * 4 * shapes.head_weights
    attention = 32 * 4 * 32 * 128 * 4 * 1000 * 1001 / 2
    assert found.bound == "compute"
    assert found.seconds == pytest.approx((gemm + attention) / 300e12)

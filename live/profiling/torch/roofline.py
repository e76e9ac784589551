"""The least time an iteration can take: its memory traffic and arithmetic over rates measured on the same device.

A cell that is measured faster than this is wrong, whatever the reason: an iteration that left out work, a clock that
changed, a timer that lies. The floor leaves out all activations and what a cache could save: it errs on the low side.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from voltana.live.profiling.cells import Cell
from voltana.live.profiling.torch.blocks import Shapes
from voltana.live.profiling.torch.device import Device, Step

BYTES = 2
"""Of a bfloat16."""
ROUNDS = 5
SLACK = 0.03
"""How far below the floor a cell may come: the rates are measured too."""


class Rates(NamedTuple):
    """What the device reaches at its best."""

    bytes_per_s: float
    """Memory: the better of a copy (bytes read plus written) and a pure read."""
    flop_per_s: float
    """The best of several large bfloat16 GEMMs."""


class Floor(NamedTuple):
    """The least time, and what sets it."""

    seconds: float
    bound: str
    """memory or compute."""


def measure_rates(device: Device, shapes: Shapes, size: int = 8192) -> Rates:
    """Time copies and reads of 4 * size^2 elements, and square GEMMs of `size` and half of it, and one of the model's.

    Args:
        device: to be measured.
        shapes: of the model.
        size: rows of the largest square matrix; small in tests.
    """
    import torch

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, device=device.torch_device, dtype=torch.bfloat16).normal_()

    source = normal(4 * size, size)
    target = torch.empty_like(source)
    moved = source.numel() * BYTES
    copied = 2 * moved / _best(device, partial(target.copy_, source))
    read = moved / _best(device, source.sum)
    flop_rates = []
    for rows, columns, depth in ((size, size, size), (size // 2,) * 3, (size, 2 * shapes.ffn, shapes.hidden)):
        multiply = partial(torch.nn.functional.linear, normal(rows, depth), normal(columns, depth))
        flop_rates.append(2.0 * rows * columns * depth / _best(device, multiply))
    return Rates(max(copied, read), max(flop_rates))


def rates_bytes(shapes: Shapes, size: int) -> int:
    """Memory that `measure_rates` takes: two buffers for the copy, operands and results of the GEMMs."""
    model_gemm = size * shapes.hidden + 2 * shapes.ffn * (shapes.hidden + size)
    return BYTES * (8 * size**2 + 3 * size**2 + model_gemm)


def _best(device: Device, step: Step) -> float:
    """Seconds of the step, the best of several short rounds: long ones would run into the power limit."""
    run = device.repeatable(step, graph=False)
    return min(device.timed(run, 4) / 4 for _ in range(ROUNDS))


def floor(shapes: Shapes, cell: Cell, rows: int, layers: int, stored: int, cache_bytes: int, rates: Rates) -> Floor:
    """The least time of a cell on one GPU.

    Args:
        shapes: the GPU's share of the model.
        cell: the load.
        rows: tokens that the GEMMs compute, padding included.
        layers: run in the iteration.
        stored: layers held; the iteration goes round them `layers / stored` times.
        cache_bytes: each round may find so much in the cache.
        rates: of the device.
    """
    heads_flop = 4.0 * shapes.heads * shapes.head_dim
    if cell.phase == "decode":
        kv_bytes = cell.tokens * shapes.kv_elements * BYTES
        attention_flop, last_rows = heads_flop * cell.tokens, rows
    else:
        kv_bytes = 0
        attention_flop = heads_flop * cell.batch_size * cell.length * (cell.length + 1) / 2
        last_rows = cell.batch_size
    moved = layers * (shapes.layer_weights * BYTES + kv_bytes) + shapes.head_weights * BYTES
    moved = max(0, moved - -(-layers // stored) * cache_bytes)
    flop = layers * (2.0 * rows * shapes.layer_weights + attention_flop) + 2.0 * last_rows * shapes.head_weights
    memory_s, compute_s = moved / rates.bytes_per_s, flop / rates.flop_per_s
    return Floor(memory_s, "memory") if memory_s > compute_s else Floor(compute_s, "compute")

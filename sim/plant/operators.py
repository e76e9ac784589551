"""Operators: how long each kernel of a transformer takes on a GPU at a clock, and the energy it adds to the base draw.

Every operator has a part that scales with the SM clock (tensor cores, instruction issue), a part that follows the
memory bandwidth, and a start-up time that no clock changes.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from voltana.sim.plant.gpu import GpuSpec, smooth_max

TILES = ((64, 64), (128, 64), (128, 128), (128, 256), (256, 128))
"""Output tiles that GEMM libraries choose from on this generation of GPUs."""
EXPERT_TILES = (16, 32, 64, 128)
"""Rows of a tile in the grouped GEMMs of experts (SGLang's fused Triton kernel)."""
ATTENTION_KERNELS = 3
"""Decode attention: preparation, attention over the KV splits, their reduction."""


@dataclass(frozen=True, slots=True)
class Work:
    """Time and energy of operators on one GPU at one clock."""

    seconds: float = 0.0
    active_ws: float = 0.0
    """Dynamic energy at the highest voltage and clock (W s); multiply by g(f)."""
    dram_j: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.seconds + other.seconds, self.active_ws + other.active_ws, self.dram_j + other.dram_j)

    def __mul__(self, times: float) -> "Work":
        return Work(self.seconds * times, self.active_ws * times, self.dram_j * times)

    def stretched(self, floor_s: float) -> "Work":
        """The same work, taking at least `floor_s`: the GPU waits for its launches."""
        return Work(max(self.seconds, floor_s), self.active_ws, self.dram_j)


@lru_cache(maxsize=200_000)
def gemm_waves(rows: int, columns: int, sm_count: int, tile_overhead: float) -> float:
    """Tensor-core time of a GEMM in multiples of (2 * 64 * 64 * k FLOP on one SM): the staircase.

    Tiles run in waves of one per SM; the library picks the tile shape that finishes first. Small tiles re-read their
    operands more often: beside the largest tile they are slower by ``1 + tile_overhead (1/rows + 1/columns - 3/256)``.
    """
    return min(
        math.ceil(math.ceil(rows / high) * math.ceil(columns / wide) / sm_count)
        * (high * wide / 4096)
        * (1.0 + tile_overhead * (1.0 / high + 1.0 / wide - 3.0 / 256))
        for high, wide in TILES
    )


class ExpertLoad(NamedTuple):
    """What routing brings to the experts of one GPU."""

    pairs: float
    """(Token, expert) pairs."""
    hit: float
    """Experts that at least one of them goes to."""

    @classmethod
    def of(cls, pairs: float, experts: float) -> "ExpertLoad":
        """So many pairs thrown at so many experts: ``e (1 - (1 - 1/e)^pairs)`` are hit."""
        return cls(pairs, experts * -math.expm1(pairs * math.log1p(-1.0 / experts)) if experts > 1.0 else 1.0)

    def tile_rows(self, overhead: float) -> float:
        """Rows that are computed: each expert's in whole tiles, tiles of few rows being slower."""
        rows = self.pairs / self.hit
        return min(
            self.hit * math.ceil(rows / high) * high * (1.0 + overhead * (1.0 / high - 1.0 / EXPERT_TILES[-1]))
            for high in EXPERT_TILES
        )


class Operators:
    """The kernels of one GPU at one clock; `slowdown` stretches what the SM clock drives (1: as profiled).

    `eager`: outside a CUDA graph.
    """

    def __init__(self, gpu: GpuSpec, clock_mhz: float, slowdown: float = 1.0, eager: bool = False) -> None:
        self.gpu = gpu
        eager_s = gpu.elementwise_eager_s
        self.elementwise_s = eager_s if eager and eager_s is not None else gpu.elementwise_s
        self.clock_hz = clock_mhz * 1e6 / slowdown
        self.bandwidth = gpu.bandwidth(clock_mhz)
        self.flops = gpu.sm_count * gpu.flops_per_cycle * self.clock_hz

    def _work(self, seconds: float, tensor_s: float, memory_s: float, moved: float) -> Work:
        """Energy beside the base draw: tensor cores and memory pipes share issue slots, so they add as a hypotenuse."""
        active = math.hypot(self.gpu.tensor_w * tensor_s, self.gpu.stream_w * memory_s)
        return Work(seconds, active, self.gpu.dram_j_per_byte * moved)

    def gemm(self, rows: int, columns: int, depth: int, dtype_bytes: int, weight_bytes: float | None = None) -> Work:
        """(rows x depth) times (depth x columns), weights read from DRAM; `weight_bytes` each, if not `dtype_bytes`."""
        gpu = self.gpu
        moved = float(dtype_bytes * (columns * depth + rows * depth + rows * columns))
        full_rate = self.flops * gpu.tensor_efficiency
        if weight_bytes is not None and weight_bytes != dtype_bytes:
            moved += (weight_bytes - dtype_bytes) * columns * depth
            full_rate *= self._rate(weight_bytes)
        memory_s = moved / self.bandwidth
        waves = gemm_waves(rows, columns, gpu.sm_count, gpu.tile_overhead)
        compute_s = waves * gpu.sm_count * 2 * 4096 * depth / full_rate
        useful_s = 2.0 * rows * columns * depth / full_rate
        return self._work(smooth_max(compute_s, memory_s) + gpu.kernel_s, useful_s, memory_s, moved)

    def _rate(self, weight_bytes: float) -> float:
        """Rate of the tensor cores over that of 16 bit: only fp8 weights meet fp8 activations."""
        return self.gpu.low_precision_rate if weight_bytes == 1.0 else 1.0

    def experts(self, load: "ExpertLoad", hidden: int, width: int, dtype_bytes: int, weight_bytes: float) -> Work:
        """The grouped GEMMs of routed experts: gate and up, activation, down, and the sum over a token's experts.

        The weights of every expert that a token hits are read; each expert's rows fill whole tiles, of the size that
        is done first.

        Args:
            load: what comes to this GPU.
            hidden, width: of an expert on this GPU.
            dtype_bytes, weight_bytes: of an activation and of a weight.
        """
        gpu = self.gpu
        weights = 3.0 * load.hit * hidden * width * weight_bytes
        moved = load.pairs * (2.0 * hidden + 3.0 * width) * dtype_bytes
        full_rate = self.flops * gpu.expert_efficiency * self._rate(weight_bytes)
        each = 6.0 * hidden * width / full_rate
        computed_s = load.tile_rows(gpu.expert_tile_overhead) * each
        weights_s, moved_s = weights / self.bandwidth, moved / self.bandwidth
        seconds = smooth_max(computed_s, weights_s) + moved_s + gpu.expert_start_s
        return self._work(seconds, load.pairs * each, weights_s + moved_s, weights + moved)

    def all_to_all(self, gpus: int, size: float) -> Work:
        """Exchange `size` bytes that each GPU has, spread evenly over all of the group."""
        if gpus == 1:
            return Work()
        return Work(self.gpu.link_latency_s + (gpus - 1) / gpus * size / self.gpu.link_bytes_per_s)

    def elementwise(self, moved: float, kernels: int = 1) -> Work:
        """Kernels that only read and write `moved` bytes: norms, activations, rotary embedding, KV store."""
        memory_s = moved / self.bandwidth
        return self._work(memory_s + kernels * self.elementwise_s, 0.0, memory_s, moved)

    def all_reduce(self, gpus: int, size: float) -> Work:
        """Sum `size` bytes over the GPUs of a tensor-parallel group."""
        if gpus == 1:
            return Work()
        return Work(self.gpu.link_latency_s + 2 * (gpus - 1) / gpus * size / self.gpu.link_bytes_per_s)

    def prefill_attention_tokens(self, tokens: int, moved: float, heads: int, head_dim: int) -> Work:
        """Prefill attention without its causal pairs: start, queries, keys and values read, outputs written, tiles."""
        memory_s = moved / self.bandwidth
        start_s = self.gpu.prefill_attention_kernels * self.gpu.kernel_s
        work = self._work(start_s + memory_s, 0.0, memory_s, moved)
        return work + self.prefill_attention_pair(heads, head_dim) * (tokens * self.gpu.prefill_attention_tile)

    def prefill_attention_pair(self, heads: int, head_dim: int) -> Work:
        """One causal (query, key) pair in all heads: two dot products, 4 FLOP per element."""
        pair_flop = 4.0 * heads * head_dim
        tensor_s = pair_flop / (self.flops * self.gpu.prefill_attention_efficiency)
        useful_s = pair_flop / (self.flops * self.gpu.tensor_efficiency)
        return self._work(tensor_s, useful_s, 0.0, 0.0)

    def decode_attention(self, units: int, context: float, unit_bytes: float) -> Work:
        """Attention of one new token: `units` (request, KV head) pairs with `context` tokens of `unit_bytes` each.

        Short contexts (up to `SHORT`) stream at full bandwidth. Long ones (from `LONG`) are split over SMs, which costs
        a reduction, and their blocks come in waves of one per SM. Between the two, linear: the table
        `aiconfigurator_a100_sglang_generation_attention.csv.gz` has no points there.
        """
        if context <= SHORT:
            return self._short_attention(units, context, unit_bytes)
        long = self._long_attention(units, max(context, LONG), unit_bytes)
        if context >= LONG:
            return long
        share = (context - SHORT) / (LONG - SHORT)
        return self._short_attention(units, SHORT, unit_bytes) * (1.0 - share) + long * share

    def _short_attention(self, units: int, context: float, unit_bytes: float) -> Work:
        gpu, moved = self.gpu, units * context * unit_bytes
        memory_s = moved / self.bandwidth
        fixed = (ATTENTION_KERNELS + gpu.attention_split_kernels * context / SHORT) * gpu.kernel_s
        return self._work(fixed + units * gpu.attention_unit_cycles / self.clock_hz + memory_s, 0.0, memory_s, moved)

    def _long_attention(self, units: int, context: float, unit_bytes: float) -> Work:
        gpu, moved = self.gpu, units * context * unit_bytes
        waves = units / gpu.sm_count
        filling = 1.0 if waves <= 0.5 else (waves / math.ceil(waves)) ** gpu.attention_filling
        memory_s = moved / (self.bandwidth * gpu.attention_efficiency * filling)
        fixed = (ATTENTION_KERNELS + gpu.attention_split_kernels) * gpu.kernel_s
        cycles = gpu.attention_unit_cycles + gpu.attention_split_cycles
        return self._work(fixed + units * cycles / self.clock_hz + memory_s, 0.0, moved / self.bandwidth, moved)


SHORT, LONG = 256.0, 512.0
"""Context lengths between which decode attention goes over to its split form."""

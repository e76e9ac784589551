"""The GPU: which clocks it has, how its rates follow the clock, and what it draws."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ValidationInfo, field_validator

from voltana.section import Count, NonNegative, Positive, Section, between

Share = Annotated[float, between(0.01, 1)]

SHARPNESS = 4.0
"""Exponent of `smooth_max`: how well compute and memory traffic overlap (4: at equal times 19 % over the larger)."""


def smooth_max(first: float, second: float) -> float:
    """Return ``(a^4 + b^4)^(1/4)``: two resources used at once, the overlap imperfect where both are near their limit.

    A hard max would put a kink where the measured GEMM times (`aiconfigurator_a100_sglang_gemm.csv.gz`) bend smoothly.
    """
    return float((first**SHARPNESS + second**SHARPNESS) ** (1.0 / SHARPNESS))


class GpuSpec(Section):
    """`gpu`: one GPU; `conf/gpu/*.yaml` names the source of each.

    Power at SM clock f (W), after the CMOS law with the voltage flat up to a knee and linear above::

        P(f) = base_w + idle_w g(f) + activity g(f) + dram_j_per_byte * (bytes/s)
        g(f) = (f / f_max) * (V(f) / V(f_max))^2

    The activity of an operator is `tensor_w` for tensor cores at full rate and `stream_w` for streaming memory.
    """

    name: str
    power: Literal["measured", "scaled"] = "measured"
    """What its power rests on: measurements of this GPU, or constants scaled from a relative by data sheet."""
    clock_min_mhz: Count
    clock_max_mhz: Count
    clock_step_mhz: Count
    memory_gib: Positive
    power_limit_w: Positive
    """Above it the GPU lowers its own clock."""
    power_limit_min_w: Positive
    """The lowest limit it can be set to."""
    base_w: Positive
    """Draw that no clock changes: leakage, memory refresh, board."""
    idle_w: NonNegative
    """Clock tree of an idle GPU with a CUDA context, at the highest clock."""
    tensor_w: NonNegative
    stream_w: NonNegative
    dram_j_per_byte: NonNegative
    knee_mhz: Positive
    voltage_ratio: Annotated[float, between(1, 3)]
    """V(f_max) / V(knee)."""
    sm_count: Count
    flops_per_cycle: Positive
    """Dense 16-bit tensor FLOP that one SM does in a cycle (data sheet)."""
    tensor_efficiency: Share
    """Share of it that a GEMM reaches with very large tiles."""
    tile_overhead: NonNegative
    """GEMM slow-down by small tiles: ``1 + tile_overhead * (1/rows + 1/columns of the tile)``."""
    dram_bytes_per_s: Positive
    """Bandwidth that weight and KV reads reach at high clocks."""
    load_bytes_per_cycle: Positive
    """Bytes all SMs together can request in a cycle: what bounds bandwidth at low clocks."""
    bandwidth_curve: tuple[tuple[Positive, Positive], ...]
    """(clock MHz, share of `dram_bytes_per_s`): linear between points and down to zero, flat above the last."""
    kernel_s: NonNegative
    """Start and tail of a GEMM or attention kernel in a CUDA graph."""
    elementwise_s: NonNegative
    """The same for a norm, activation or rotary kernel."""
    elementwise_eager_s: NonNegative | None = None
    """The same outside a CUDA graph, in prefill; null: `elementwise_s`."""
    attention_unit_cycles: NonNegative
    """Decode attention: SM cycles per (request, KV head), whatever the context."""
    attention_split_cycles: NonNegative
    """Decode attention: further cycles per (request, KV head) once long contexts are split over SMs."""
    attention_split_kernels: NonNegative = 2.0
    """Decode attention: what splitting a long context adds to it, in kernel times."""
    attention_efficiency: Annotated[float, between(0.01, 1.5)]
    """Decode attention: bandwidth it reaches on long contexts with all SMs busy, over what weight reads reach."""
    attention_filling: Annotated[float, between(0, 1)] = 1.0
    """Decode attention: how far it loses by a last wave that leaves SMs idle. 1: as blocks that come in waves; 0: not
    at all, as kernels that spread the rest over all SMs."""
    low_precision_rate: Positive = 1.0
    """Rate of 8-bit tensor cores over that of 16-bit ones; 1: there are none, 8-bit weights only save traffic."""
    expert_efficiency: Share = 0.4051
    """Share of the tensor peak that the grouped GEMMs of a mixture of experts reach with large tiles. This default and
    the two below are the A100's, fitted as docs/catalogue.md tells; other GPUs have their own."""
    expert_tile_overhead: NonNegative = 37.5
    """Their slow-down by tiles of few rows: ``1 + expert_tile_overhead * (1/rows - 1/128)``."""
    expert_start_s: NonNegative = 3.866e-05
    """What sorting tokens by experts, starting the kernels and adding up the answers takes whatever the load."""
    prefill_attention_efficiency: Share
    """Prefill attention: share of the tensor peak."""
    prefill_attention_kernels: NonNegative = 3.0
    """Prefill attention: start and tail, in kernel times."""
    prefill_attention_tile: NonNegative = 0.0
    """Prefill attention: pairs per prompt token that are computed beside its causal ones, as tiles on the diagonal are
    computed whole."""
    link_latency_s: NonNegative
    link_bytes_per_s: Positive
    """All-reduce of n GPUs over s bytes: ``link_latency_s + 2 (n - 1) / n * s / link_bytes_per_s``."""
    sensor_window_s: Positive | None = None
    """What a reading of its power sensor is the mean of; None: as of an A100 (`conf/sensor/nvml.yaml`)."""

    @field_validator("clock_max_mhz")
    @classmethod
    def _above_the_lowest(cls, clock_mhz: int, others: ValidationInfo) -> int:
        lowest = others.data.get("clock_min_mhz", clock_mhz)
        if clock_mhz < lowest:
            raise ValueError(f"from gpu.clock_min_mhz = {lowest}")
        return clock_mhz

    @field_validator("knee_mhz")
    @classmethod
    def _within_the_clocks(cls, clock_mhz: float, others: ValidationInfo) -> float:
        low, high = (others.data.get(f"clock_{end}_mhz") for end in ("min", "max"))
        if low and high and not low <= clock_mhz <= high - 1:
            raise ValueError(f"{low} to {high - 1}, below the highest clock")
        return clock_mhz

    @field_validator("bandwidth_curve")
    @classmethod
    def _rises(cls, curve: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if not curve or curve[-1][1] > 1 or any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(curve)):
            raise ValueError("rising pairs [clock MHz, share up to 1]")
        return curve

    def clocks(self) -> tuple[int, ...]:
        """Supported SM clocks in MHz, rising."""
        return tuple(range(self.clock_min_mhz, self.clock_max_mhz + 1, self.clock_step_mhz))

    def supports(self, clock_mhz: float) -> bool:
        """Whether the GPU can be set to this clock."""
        on_grid = (clock_mhz - self.clock_min_mhz) % self.clock_step_mhz == 0
        return on_grid and self.clock_min_mhz <= clock_mhz <= self.clock_max_mhz

    def dynamic_scale(self, clock_mhz: float) -> float:
        """g(f): dynamic power at a clock as a share of that at the highest clock."""
        slope = (self.voltage_ratio - 1.0) / (self.clock_max_mhz - self.knee_mhz)
        voltage = 1.0 + slope * max(0.0, clock_mhz - self.knee_mhz)
        return clock_mhz / self.clock_max_mhz * (voltage / self.voltage_ratio) ** 2

    def dram_share(self, clock_mhz: float) -> float:
        """Bandwidth of a pure copy kernel at a clock as a share of its highest."""
        low_clock, low_share = 0.0, 0.0
        for clock, share in self.bandwidth_curve:
            if clock_mhz < clock:
                return low_share + (clock_mhz - low_clock) / (clock - low_clock) * (share - low_share)
            low_clock, low_share = clock, share
        return low_share

    def bandwidth(self, clock_mhz: float) -> float:
        """Bytes/s that weight and KV reads reach at a clock: DRAM and the SMs' requests, both at work."""
        dram = self.dram_share(clock_mhz) * self.dram_bytes_per_s
        requests = self.load_bytes_per_cycle * clock_mhz * 1e6
        return 1.0 / smooth_max(1.0 / dram, 1.0 / requests)

    def tensor_rate(self, clock_mhz: float) -> float:
        """FLOP/s of the tensor cores at a clock, as the data sheet has it."""
        return self.sm_count * self.flops_per_cycle * clock_mhz * 1e6

    def idle_power_w(self, clock_mhz: float) -> float:
        """Power with a CUDA context loaded and nothing running, W."""
        return self.base_w + self.idle_w * self.dynamic_scale(clock_mhz)

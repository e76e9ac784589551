"""The GPU: which clocks it has, how its rates follow the clock, and what it draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from voltana.errors import UserError
from voltana.sim.plant import checks

SHARPNESS = 4.0
"""Exponent of `smooth_max`: how well compute and memory traffic overlap (4: at equal times 19 % over the larger)."""


def smooth_max(first: float, second: float) -> float:
    """Return ``(a^4 + b^4)^(1/4)``: two resources used at once, the overlap imperfect where both are near their limit.

    A hard max would put a kink where the measured GEMM times (`aiconfigurator_a100_sglang_gemm.csv.gz`) bend smoothly.
    """
    return float((first**SHARPNESS + second**SHARPNESS) ** (1.0 / SHARPNESS))


@dataclass(frozen=True)
class GpuSpec:
    """One GPU as plain numbers; `conf/gpu/*.yaml` names the source of each.

    Power at SM clock f (W), after the CMOS law with the voltage flat up to a knee and linear above::

        P(f) = base_w + idle_w g(f) + activity g(f) + dram_j_per_byte * (bytes/s)
        g(f) = (f / f_max) * (V(f) / V(f_max))^2

    The activity of an operator is `tensor_w` for tensor cores at full rate and `stream_w` for streaming memory.
    """

    name: str
    clock_min_mhz: int
    clock_max_mhz: int
    clock_step_mhz: int
    memory_gib: float
    power_limit_w: float
    """Above it the GPU lowers its own clock."""
    power_limit_min_w: float
    """The lowest limit it can be set to."""
    base_w: float
    """Draw that no clock changes: leakage, memory refresh, board."""
    idle_w: float
    """Clock tree of an idle GPU with a CUDA context, at the highest clock."""
    tensor_w: float
    stream_w: float
    dram_j_per_byte: float
    knee_mhz: float
    voltage_ratio: float
    """V(f_max) / V(knee)."""
    sm_count: int
    flops_per_cycle: float
    """Dense 16-bit tensor FLOP that one SM does in a cycle (data sheet)."""
    tensor_efficiency: float
    """Share of it that a GEMM reaches with very large tiles."""
    tile_overhead: float
    """GEMM slow-down by small tiles: ``1 + tile_overhead * (1/rows + 1/columns of the tile)``."""
    dram_bytes_per_s: float
    """Bandwidth that weight and KV reads reach at high clocks."""
    load_bytes_per_cycle: float
    """Bytes all SMs together can request in a cycle: what bounds bandwidth at low clocks."""
    bandwidth_curve: tuple[tuple[float, float], ...]
    """(clock MHz, share of `dram_bytes_per_s`): linear between points and down to zero, flat above the last."""
    kernel_s: float
    """Start and tail of a GEMM or attention kernel in a CUDA graph."""
    elementwise_s: float
    """The same for a norm, activation or rotary kernel."""
    attention_unit_cycles: float
    """Decode attention: SM cycles per (request, KV head), whatever the context."""
    attention_split_cycles: float
    """Decode attention: further cycles per (request, KV head) once long contexts are split over SMs."""
    attention_efficiency: float
    """Decode attention: share of the bandwidth it reaches on long contexts with all SMs busy."""
    prefill_attention_efficiency: float
    """Prefill attention: share of the tensor peak."""
    link_latency_s: float
    link_bytes_per_s: float
    """All-reduce of n GPUs over s bytes: ``link_latency_s + 2 (n - 1) / n * s / link_bytes_per_s``."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from the `gpu` section of a configuration."""
        return checks.build(cls, "gpu", mapping)

    def __post_init__(self) -> None:
        for key in ("clock_min_mhz", "clock_max_mhz", "clock_step_mhz", "sm_count"):
            checks.count(f"gpu.{key}", getattr(self, key))
        for key in _POSITIVE:
            checks.positive(f"gpu.{key}", getattr(self, key))
        for key in _NON_NEGATIVE:
            checks.number(f"gpu.{key}", getattr(self, key), 0.0)
        for key in ("tensor_efficiency", "attention_efficiency", "prefill_attention_efficiency"):
            checks.number(f"gpu.{key}", getattr(self, key), 0.01, 1.0)
        checks.number("gpu.clock_max_mhz", self.clock_max_mhz, self.clock_min_mhz)
        checks.number("gpu.knee_mhz", self.knee_mhz, self.clock_min_mhz, self.clock_max_mhz - 1)
        checks.number("gpu.voltage_ratio", self.voltage_ratio, 1.0, 3.0)
        object.__setattr__(self, "bandwidth_curve", _curve(self.bandwidth_curve))

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


_POSITIVE = [
    "memory_gib",
    "power_limit_w",
    "power_limit_min_w",
    "base_w",
    "flops_per_cycle",
    "dram_bytes_per_s",
    "load_bytes_per_cycle",
    "link_bytes_per_s",
]
_NON_NEGATIVE = [
    "idle_w",
    "tensor_w",
    "stream_w",
    "dram_j_per_byte",
    "tile_overhead",
    "kernel_s",
    "elementwise_s",
    "attention_unit_cycles",
    "attention_split_cycles",
    "link_latency_s",
]


def _curve(points: object) -> tuple[tuple[float, float], ...]:
    """Check the bandwidth curve: clocks and shares both rise, shares end at 1."""
    try:
        curve = tuple((float(clock), float(share)) for clock, share in points)  # type: ignore[attr-defined]
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(curve))
        good = bool(curve) and rising and curve[0][0] > 0 and curve[0][1] > 0 and curve[-1][1] <= 1
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"gpu.bandwidth_curve: found {points!r}; allowed: rising pairs [clock MHz, share up to 1]")
    return curve

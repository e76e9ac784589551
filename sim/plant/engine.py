"""The serving engine: what it adds to the bare work of the GPU, each effect with a neutral default."""

from itertools import pairwise
from typing import Annotated

from pydantic import field_validator

from voltana.section import Count, Flag, Section, between

HostTime = Annotated[float, between(0, 10)]
Factor = Annotated[float, between(0.05, 20)]


def sglang_graph_batches(cap: int) -> tuple[int, ...]:
    """Decode batch sizes for which SGLang 0.5 captures CUDA graphs, up to `cap`."""
    sizes = (1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 497, 16), *range(512, cap + 1, 32))
    return tuple(size for size in sizes if size <= cap)


class EngineSpec(Section):
    """`serving.engine`. The defaults: SGLang on an 80 GB GPU, kernels as fast as the tables have them."""

    cuda_graph: Flag = True
    """Decode runs from CUDA graphs: no launch gaps, but a batch is padded to a captured size."""
    graph_batches: tuple[Count, ...] = sglang_graph_batches(256)
    """Captured batch sizes, rising; a larger batch runs eagerly, without padding."""
    mem_fraction: Annotated[float, between(0.01, 1)] = 0.85
    """Share of GPU memory for weights and KV cache."""
    host_prefill_s: HostTime = 0.0
    """Time per prefill iteration in which the GPU waits for the scheduler (no overlap), at idle power."""
    host_request_s: HostTime = 0.0
    """The same for every request of a prefill iteration: tokens in, cache laid out and sent, answer out."""
    host_decode_s: HostTime = 0.0
    """The same as `host_prefill_s` per decode iteration."""
    prefill_slowdown: Factor = 1.0
    """Prefill kernels: the part that scales with the clock takes so many times as long, at equal power."""
    decode_slowdown: Factor = 1.0
    """The same for decode kernels; it makes decode more sensitive to the clock."""
    prefill_activity: Factor = 1.0
    """Dynamic power of SMs and memory in prefill relative to the calibrated GPU: another die, other data, other
    kernels."""
    decode_activity: Factor = 1.0
    """The same in decode."""
    eager_launch_s: HostTime = 0.0
    """Host time to launch a kernel outside a CUDA graph; a block of kernels takes at least the sum of its launches."""

    @field_validator("graph_batches")
    @classmethod
    def _rising(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in pairwise(sizes)):
            raise ValueError("rising batch sizes")
        return sizes

    def captured(self, batch_size: int) -> bool:
        """Whether a decode batch of this size runs from a CUDA graph."""
        return self.cuda_graph and bool(self.graph_batches) and batch_size <= self.graph_batches[-1]

    def padded(self, batch_size: int) -> int:
        """Batch size that the GPU computes for `batch_size` requests."""
        if not self.captured(batch_size):
            return batch_size
        return next(size for size in self.graph_batches if size >= batch_size)

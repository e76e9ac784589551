"""The limits and delays of a cluster, as plain numbers."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """How a batch is formed."""

    max_tokens: int
    """Prompt tokens of a batch. A longer prompt runs alone, unless prompts are chunked."""
    max_requests: int
    chunk_tokens: int | None = None
    """With chunking, no batch exceeds this, and a prompt that does not fit is cut."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What bounds a batch."""

    max_requests: int
    kv_tokens: int
    """KV tokens that fit."""
    reserve_tokens: int
    """Room kept for every request of the batch when another one joins."""

    def admit(self, batch_size: int, kv_tokens: int) -> bool:
        """Whether a batch may grow to this size and this many KV tokens; one request alone always may."""
        if batch_size > self.max_requests:
            return False
        return batch_size == 1 or kv_tokens + batch_size * self.reserve_tokens <= self.kv_tokens


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """The path between a prefill and a decode instance."""

    latency_s: float
    bytes_per_s: float
    """Of the path as a whole; its streams share it equally."""
    streams: int
    """Transfers at a time; others wait their turn."""

    def duration_s(self, size_bytes: float) -> float:
        """Time of one transfer once it has a stream."""
        return self.latency_s + size_bytes * self.streams / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Actuation:
    """Delays of a clock change."""

    block_s: float
    settle_s: float


def check_clock(clock_mhz: int, supported_mhz: Set[int]) -> None:
    """Refuse a command for a clock that the GPU does not have: a bug of the policy."""
    if clock_mhz not in supported_mhz:
        raise ValueError(f"a policy commanded {clock_mhz!r} MHz, which the GPU does not have")

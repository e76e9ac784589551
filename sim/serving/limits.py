"""The limits and delays of a cluster, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from voltana.state import Decision


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
    """Room kept for every request of the batch when another one joins; at least that of its next token."""

    def serve(self, prompt_tokens: int) -> bool:
        """Whether the cache holds a prompt, its first token and the next one."""
        return prompt_tokens + 2 <= self.kv_tokens

    def grow(self, batch_size: int, kv_tokens: int) -> bool:
        """Whether the next token of every request fits."""
        return kv_tokens + batch_size <= self.kv_tokens

    def admit(self, batch_size: int, kv_tokens: int) -> bool:
        """Whether a batch may grow to this size and this many KV tokens; one request alone always may."""
        if batch_size > self.max_requests:
            return False
        return batch_size == 1 or kv_tokens + batch_size * max(1, self.reserve_tokens) <= self.kv_tokens


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
class FrontEnd:
    """What stands before the servers and does one thing at a time."""

    leg_s: float = 0.0
    """To send a request to prefill, and again to decode."""
    stall_s: float = 0.0
    stall_legs: int | None = None
    """It stalls with every so many-th leg."""

    def duration_s(self, leg: int) -> float:
        """Time of a leg, counted from 1."""
        return self.leg_s + (self.stall_s if self.stall_legs and leg % self.stall_legs == 0 else 0.0)


@dataclass(frozen=True, slots=True)
class Actuation:
    """Delays of a change of clock or power cap."""

    block_s: float
    settle_s: float

    def call_s(self, gpus: int, before: Setting, after: Setting) -> float:
        """How long the driver is blocked: one call a GPU for the clock, one for the cap."""
        calls = (after.clock_mhz != before.clock_mhz) + (after.power_cap_w != before.power_cap_w)
        return self.block_s * gpus * max(1, calls)


class Setting(NamedTuple):
    """What a GPU is commanded to."""

    clock_mhz: int
    power_cap_w: float | None = None
    """Of one GPU; None: its own limit."""

    @classmethod
    def of(cls, decision: Decision) -> Setting:
        """What a decision commands."""
        return cls(decision.clock_mhz, decision.power_cap_w)

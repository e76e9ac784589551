"""The sections of what serves requests: instances and their limits, the link between them, their clocks and sensors.

Simulator and live harness use the checked sections themselves.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from voltana.section import Count, Positive, Seconds, Section, WholeNumber, between
from voltana.state import Phase

Part = dict[str, Any]
"""A section that is checked by what is built from it."""
Clocks = Annotated[list[Count], Field(min_length=2)]


class Link(Section):
    """`cluster.link`: the path between a prefill and a decode instance."""

    latency_s: Seconds
    bytes_per_s: Positive
    """Of the path as a whole; its streams share it equally."""
    streams: Count
    """Transfers at a time; others wait their turn."""

    def duration_s(self, size_bytes: float) -> float:
        """Time of one transfer once it has a stream."""
        return self.latency_s + size_bytes * self.streams / self.bytes_per_s


class Side(Section):
    """`cluster.prefill`, `cluster.decode`: what the instances of a phase have of their own; null: what all have."""

    gpu: Part | None = None
    """In the place of the section `gpu`. On the command line the name of one, such as `h100_sxm`."""
    tp: Count | None = None
    """In the place of `model.tp`."""
    power_limit_w: Positive | None = None
    """In the place of that of the GPU."""
    engine: Part | None = None
    """In the place of `serving.engine`: what goes with its GPU."""
    profile_clocks_mhz: Clocks | None = None
    """In the place of `profile.clocks_mhz`: the same shares of its GPU's highest clock."""

    @field_validator("gpu", mode="before")
    @classmethod
    def _composed(cls, gpu: object) -> object:
        if isinstance(gpu, str):
            raise ValueError("null; clusters of several kinds of GPU are simulated alone (voltana-sim)")
        return gpu


class ClusterConfig(Section):
    """`cluster`."""

    name: str
    prefill_instances: Count
    decode_instances: Count
    gpus_per_host: Count
    link: Link
    prefill: Side = Side()
    decode: Side = Side()

    def side(self, phase: Phase) -> Side:
        """That of a phase."""
        return self.prefill if phase == "prefill" else self.decode


class PrefillLimits(Section):
    """`serving.prefill`: how a batch is formed."""

    max_tokens: Count
    """Prompt tokens of a batch. A longer prompt runs alone, unless prompts are chunked."""
    max_requests: Count
    chunk_tokens: Count | None
    """With chunking, no batch exceeds this, and a prompt that does not fit is cut."""


class DecodeServing(Section):
    """`serving.decode`: what bounds a batch."""

    max_requests: Count
    reserve_tokens: WholeNumber
    """Room kept for every request of the batch when another one joins; at least that of its next token."""
    kv_tokens: Count | Literal["auto"]
    """KV tokens that fit; auto: what GPU memory leaves."""

    def within(self, kv_tokens: int) -> DecodeLimits:
        """The limits of an instance that holds so many KV tokens."""
        return DecodeLimits(**{**vars(self), "kv_tokens": kv_tokens})


class DecodeLimits(DecodeServing):
    """`serving.decode` of an instance whose memory is known."""

    kv_tokens: Count

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


class ServingConfig(Section):
    """`serving`."""

    name: str
    prefill: PrefillLimits
    decode: DecodeServing
    latency_noise: Annotated[float, between(0, 0.5)]
    length_error: Annotated[float, between(0, 3)]
    engine: Part


class Actuation(Section):
    """`actuation`: delays of a change of clock or power cap."""

    name: str
    block_s: Seconds
    """The driver is blocked by a call for so long."""
    settle_s: Seconds
    """From the end of the call until the change is in force."""

    def call_s(self, gpus: int, calls: int) -> float:
        """How long the driver is blocked by so many calls (at least one) for each GPU."""
        return self.block_s * gpus * max(1, calls)


class Sensor(Section):
    """`sensor`: how a power sensor measures."""

    name: str
    period_s: Positive
    window_s: Positive
    error: Annotated[float, between(0, 0.5)]
    """Largest relative error of a sensor; each has one of its own for the whole run."""

    @property
    def periods(self) -> int:
        """How many periods a window lasts, if not a part of one: then 1."""
        return max(1, round(self.window_s / self.period_s))

    @property
    def seen_s(self) -> float:
        """How much of a period, at its end, its window covers."""
        return min(self.window_s, self.period_s)

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.window_s > self.period_s and not math.isclose(self.window_s, self.periods * self.period_s):
            raise ValueError(f"window_s up to period_s = {self.period_s:g}, or a whole number of times that")
        return self

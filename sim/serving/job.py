"""A request on its way through the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from voltana.record import COMPLETED, FAILED, UNFINISHED, RequestRow
from voltana.state import Phase
from voltana.traces import Request


@cache
def instance_name(phase: Phase, index: int) -> str:
    """What an instance is called in the record."""
    return f"{phase}-{index}"


@dataclass(slots=True, eq=False)
class Job:
    """The mutable state of one request."""

    request: Request
    prefill: int | None = None
    """Index of the prefill instance."""
    decode: int | None = None
    """Index of the decode instance."""
    owner: Any = None
    """Whatever its driver wants to find again."""
    gone: bool = False
    """Whether its client has left."""
    prefilled: int = 0
    """Prompt tokens already computed."""
    produced: int = 0
    """Output tokens already made."""
    taken_s: float = field(default=0.0)
    """When its prefill instance, or the queue before all of them, got it: what servers can know of its age."""
    prefill_start_s: float | None = None
    prefill_end_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float = field(default=0.0)
    max_gap_s: float | None = None
    failed: bool = False
    expected_tokens: float = 0.0
    """Output tokens as a length predictor tells them to policies."""

    @property
    def kv_tokens(self) -> int:
        """KV tokens the request holds while it decodes."""
        return self.request.input_tokens + self.produced

    @property
    def finished(self) -> bool:
        """Whether the last output token is made."""
        return self.produced == self.request.output_tokens

    def prompt_done(self, now_s: float) -> None:
        """Take the token that prefill makes; its client does not see it yet."""
        self.produced = 1
        self.prefill_end_s = now_s

    def join(self, now_s: float) -> bool:
        """Enter the batch of a decode instance; True the first time, when its client gets the first token."""
        if self.first_token_s is not None:
            return False
        self.first_token_s = self.last_token_s = now_s
        return True

    def next_token(self, now_s: float) -> float:
        """Take a token that decode makes; return the gap since the one before, in seconds."""
        gap = now_s - self.last_token_s
        self.produced += 1
        self.last_token_s = now_s
        if self.max_gap_s is None or gap > self.max_gap_s:
            self.max_gap_s = gap
        return gap

    def row(self) -> RequestRow:
        """The request as the run record shows it."""
        request = self.request
        done = self.finished and not self.failed
        first = self.first_token_s
        gaps = request.output_tokens - 1
        return RequestRow(
            request.request_id,
            request.arrival_s,
            request.input_tokens,
            request.output_tokens,
            None if self.prefill is None else instance_name("prefill", self.prefill),
            None if self.decode is None else instance_name("decode", self.decode),
            self.prefill_start_s,
            self.prefill_end_s,
            first,
            self.last_token_s if done else None,
            None if first is None else first - request.arrival_s,
            (self.last_token_s - first) / gaps if done and gaps and first is not None else None,
            self.max_gap_s,
            COMPLETED if done else FAILED if self.failed else UNFINISHED,
        )

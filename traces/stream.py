"""Requests, and the stream that joins lengths and arrival times into them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from voltana.checks import integer, optional_integer, positive, refused
from voltana.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK_REQUESTS = 8192
"""Requests drawn at a time: large enough for numpy, small enough to stay in cache. The stream does not depend on it."""


class Request(NamedTuple):
    """One request of a run. Times are seconds since the start of the run."""

    request_id: int
    """0, 1, 2, ... in order of arrival."""
    arrival_s: float
    input_tokens: int
    output_tokens: int


class Block(NamedTuple):
    """Some consecutive requests as columns."""

    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None
    """None from a source that knows lengths only."""


class LengthSource(Protocol):
    """Says how long requests are.

    A source may have three more members. `ends`: whether its requests come to an end (False if it has none).
    `timed_blocks`, as `blocks` with `arrival_s`, for an arrival process that reads the trace's own times.
    `report()`: a mapping of plain values, what was read and what was left out, which goes into the summary of the run.
    """

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield blocks of about `size` requests, without end unless the source itself ends.

        The requests in order may not depend on `size`. All randomness comes from `rng`.
        """
        ...


class ArrivalProcess(Protocol):
    """Says when requests come. With `reads_times = True` it is given the trace's own times."""

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Yield the same blocks with `arrival_s` set, never decreasing from one request to the next."""
        ...


class RequestStream(Iterator[Request]):
    """The requests of a run, one by one, and what is known of them."""

    def __init__(
        self,
        blocks: Iterator[Block],
        until_s: float,
        limit: int | None,
        lengths: LengthSource,
        facts: Mapping[str, object],
    ) -> None:
        self._requests = self._until(blocks, until_s, limit)
        self._lengths = lengths
        self._facts = facts
        self.first_s: float | None = None
        """When the first request arrives, even if the run ends before; known once one was asked for."""
        self.ended_by: str | None = None
        """What ended the stream: duration_s, requests or trace. None before that."""

    def __iter__(self) -> Iterator[Request]:
        return self._requests

    def __next__(self) -> Request:
        return next(self._requests)

    def about(self) -> dict[str, object]:
        """What the summary of a run tells of its requests, as plain values."""
        report = getattr(self._lengths, "report", dict)
        return {**self._facts, "ended_by": self.ended_by, **report()}

    def none_arrived(self) -> UserError:
        """The error of a run without requests."""
        found = "no request arrives within it"
        if self.first_s is not None:
            found += f" (the first at {self.first_s:g} s)"
        return UserError(f"duration_s: {found}, allowed: long enough for at least one")

    def _until(self, blocks: Iterator[Block], until_s: float, limit: int | None) -> Iterator[Request]:
        first = 0
        for inputs, outputs, arrival_s in blocks:
            assert arrival_s is not None, "an ArrivalProcess sets arrival_s"
            if self.first_s is None and len(arrival_s):
                self.first_s = float(arrival_s[0])
            in_time = int(np.searchsorted(arrival_s, until_s, side="right"))
            kept = in_time if limit is None else min(in_time, limit - first)
            columns = (arrival_s[:kept].tolist(), inputs[:kept].tolist(), outputs[:kept].tolist())
            yield from map(Request._make, zip(range(first, first + kept), *columns, strict=True))
            first += kept
            if kept < len(inputs) or first == limit:
                self.ended_by = "requests" if first == limit else "duration_s"
                return
        self.ended_by = "trace"


def request_stream(
    lengths: LengthSource,
    arrivals: ArrivalProcess,
    *,
    duration_s: float | None,
    requests: int | None,
    seed: int,
    block_requests: int = BLOCK_REQUESTS,
    facts: Mapping[str, object] | None = None,
) -> RequestStream:
    """Stream requests until `duration_s` has passed, `requests` were made or the trace ends, whichever is first.

    Lengths and arrivals draw from independent generators spawned from `seed`: another request rate meets the
    same requests, stretched in time, which makes rates comparable. Memory does not grow with the number of requests.
    `facts` are told again by `RequestStream.about`.

    >>> from voltana.traces.arrivals import Uniform
    >>> from voltana.traces.lengths import Fixed
    >>> source = Fixed(input_tokens=512, output_tokens=128)
    >>> for request in request_stream(source, Uniform(rate=2.0), duration_s=1.0, requests=None, seed=1):
    ...     print(request)
    Request(request_id=0, arrival_s=0.5, input_tokens=512, output_tokens=128)
    Request(request_id=1, arrival_s=1.0, input_tokens=512, output_tokens=128)
    """
    if duration_s is None and requests is None and not getattr(lengths, "ends", False):
        raise refused(
            "duration_s", None, "a number > 0; null with requests=N, or with a trace that ends (a file, not repeated)"
        )
    until_s = float("inf") if duration_s is None else positive("duration_s", duration_s)
    limit = optional_integer("requests", requests, least=1)
    length_rng, arrival_rng = map(
        np.random.default_rng, np.random.SeedSequence(integer("seed", seed, least=0)).spawn(2)
    )
    draw = lengths.blocks
    if getattr(arrivals, "reads_times", False):
        draw = getattr(lengths, "timed_blocks", lengths.blocks)
    scheduled = arrivals.schedule(draw(length_rng, block_requests), arrival_rng)
    return RequestStream(scheduled, until_s, limit, lengths, facts or {})


def within_context(blocks: Iterable[Block], limit: int | None, *, give_up: int = 1_000_000) -> Iterator[Block]:
    """Drop requests whose input and output together exceed `limit` tokens; fail rather than search for ever."""
    dropped = 0
    kept_any = False
    for block in blocks:
        kept = block if limit is None else _fitting(block, limit)
        if len(kept.input_tokens):
            dropped, kept_any = 0, True
            yield kept
            continue
        dropped += len(block.input_tokens)
        if dropped >= give_up:
            break
    if dropped >= give_up or not kept_any:
        raise refused("trace.max_total_tokens", limit, f"a limit that some request meets; {dropped} in a row do not")


def _fitting(block: Block, limit: int) -> Block:
    fits = block.input_tokens + block.output_tokens <= limit
    arrival_s = None if block.arrival_s is None else block.arrival_s[fits]
    return Block(block.input_tokens[fits], block.output_tokens[fits], arrival_s)

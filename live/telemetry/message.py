"""The message on the wire: one load snapshot of one server, packed as a MessagePack array."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import msgspec

from voltana.state import LoadSnapshot, Phase

VERSION = 1
"""Of the layout. A field may be added at the end without a new version; anything else needs one."""

SAME_HOST_S = 0.5
"""Two processes whose wall and monotonic clocks are this equally far apart run on one host."""


class Clock(NamedTuple):
    """One instant, read on both clocks of a host."""

    monotonic_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Clock:
        """The present."""
        return cls(time.monotonic(), time.time())

    def seconds_to(self, later: Clock) -> float:
        """Time from this instant to a later one, which may have been read on another host.

        On one host the monotonic clock decides, which nobody sets; between hosts only the wall clock is common.
        """
        monotonic, wall = later.monotonic_s - self.monotonic_s, later.wall_s - self.wall_s
        return monotonic if abs(monotonic - wall) < SAME_HOST_S else wall


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a server publishes at the start of every iteration, when it goes idle, and now and then while it is.

    The fields from `batch_size` to `busy_s` are those of `voltana.state.LoadSnapshot`. A server that publishes
    counts everything since it started; the subscriber makes that a run's own.
    """

    version: int
    instance: str
    phase: Phase
    sequence: int
    """Rises by one per message; a gap tells of messages lost."""
    monotonic_s: float
    wall_s: float
    max_kv_tokens: int
    """KV tokens that fit; 0: not known."""
    clock_mhz: int = 0
    """SM clock commanded last, where the server knows it; 0: it does not."""
    batch_size: int = 0
    batch_tokens: int = 0
    queued: int = 0
    queued_tokens: int = 0
    longest_wait_s: float = 0.0
    idle_s: float = 0.0
    arrived_requests: int = 0
    arrived_tokens: int = 0
    iterations: int = 0
    busy_s: float = 0.0

    @property
    def clock(self) -> Clock:
        """When it was published."""
        return Clock(self.monotonic_s, self.wall_s)


class Telemetry(NamedTuple):
    """A message as a controller or router sees it."""

    instance: str
    phase: Phase
    load: LoadSnapshot
    """Its `time_s` counts from the subscriber's start."""
    max_kv_tokens: int
    received_s: float
    """Monotonic clock of this process when the message came in."""
    transport_s: float
    """Time it was under way."""


IDLE = LoadSnapshot(0.0, 0, 0, 0, 0, 0, 0.0, math.inf, 0, 0)
"""An instance of which nothing has been heard."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class WrongMessageError(ValueError):
    """Bytes that are not a message of this version."""


def encode(message: Message) -> bytes:
    """Pack a message."""
    return _encode(message)


def decode(payload: bytes) -> Message:
    """Unpack a message.

    Raises:
        WrongMessageError: another version, or not a message at all.
    """
    try:
        message = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WrongMessageError(_reason(payload, error)) from error
    if message.version != VERSION:
        raise WrongMessageError(_reason(payload))
    return message


def _reason(payload: bytes, error: Exception | None = None) -> str:
    try:
        version = msgspec.msgpack.decode(payload)[0]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, LookupError):
        version = None
    if type(version) is not int:
        return f"not a telemetry message ({error})"
    if version == VERSION:
        return f"a telemetry message with a wrong field ({error})"
    return f"telemetry of version {version}, this side speaks {VERSION}: install the same voltana on both sides"

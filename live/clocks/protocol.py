r"""What clients and the owner say to each other: one JSON object per line over a Unix-domain socket.

    > {"op":"hello","id":0,"protocol":1,"name":"decode0"}
    < {"is":"welcome","id":0,"protocol":1,"pid":4711,"observe":false,"heartbeat_s":2.0,"gpus":[...]}
    > {"op":"own","id":1,"group":"decode0","gpus":[2,3]}
    < {"is":"done","id":1}
    > {"op":"clock","id":2,"group":"decode0","mhz":1005}
    < {"is":"applied","id":2,"group":"decode0","setting":"clock","value":1005,"found":1005,"wait_ms":0.1,...}

Every request has an `id` of the client's choice, and is answered once: by "done", "applied" (the GPUs were read, and
show it), "superseded" (a newer command of the same kind took its place first), "readings" or "refused"; only "feed" is
answered just when it is refused. A command that a driver failed, or that the GPUs do not show, is "refused", and made
again by the owner until a newer one takes its place: "applied" follows, each time that it had to be.
"changed", "slow" and "lost" come unasked. Whoever owns GPUs and says nothing for `heartbeat_s` loses them; "ping" is
enough.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from voltana.live.clocks.device import Fault, GpuInfo, Reading

PROTOCOL = 1
MAX_LINE = 64 * 1024
"""Bytes; a longer request is an error. Answers may be longer."""

Setting = Literal["clock", "power"]
Code = Fault | Literal["bad_message", "unknown_gpu", "busy", "not_owner", "observe", "overload"]

Id = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,63}\Z")]
"""Of clients and groups: they go into the owner's log, where nothing may look like a line of its own."""
Gpus = Annotated[list[Annotated[int, Meta(ge=0, le=4095)]], Meta(min_length=1, max_length=1024)]
Count = Annotated[int, Meta(ge=0, le=100_000_000)]


class Request(Struct, tag_field="op", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a client says."""

    id: Id


class Hello(Request, tag="hello", frozen=True):
    """The first line of every client."""

    protocol: int
    name: Name
    """For messages to people."""


class Ping(Request, tag="ping", frozen=True):
    """I am alive."""


class Own(Request, tag="own", frozen=True):
    """Make these GPUs mine, as a group that is commanded together."""

    group: Name
    gpus: Gpus


class Release(Request, tag="release", frozen=True):
    """Restore the GPUs of a group and give them up."""

    group: Name


class SetClock(Request, tag="clock", frozen=True):
    """Lock the SM clock of a group; null: back to the default."""

    group: Name
    mhz: Annotated[int, Meta(ge=0, le=100_000)] | None


class SetPower(Request, tag="power", frozen=True):
    """Cap the power of each GPU of a group; null: back to what it was."""

    group: Name
    watts: Annotated[float, Meta(gt=0, le=100_000)] | None


class Read(Request, tag="read", frozen=True):
    """Read the meters."""

    gpus: Gpus


class Watch(Request, tag="watch", frozen=True):
    """Send me "changed" for these GPUs."""

    gpus: Gpus


class Feed(Request, tag="feed", frozen=True):
    """Simulated GPUs: what an instance runs from now on; fields as in `voltana.live.clocks.simulated.Load`."""

    gpus: Gpus
    phase: Literal["idle", "prefill", "decode"]
    requests: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    tokens: Count = 0
    token_pairs: Annotated[float, Meta(ge=0, le=1e18)] = 0.0


AnyRequest = Hello | Ping | Own | Release | SetClock | SetPower | Read | Watch | Feed


class Reply(Struct, tag_field="is", frozen=True, kw_only=True):
    """What the owner says; `id` is None where nobody asked."""

    id: int | None = None


class Welcome(Reply, tag="welcome", frozen=True):
    """The answer to "hello"."""

    protocol: int
    pid: int
    observe: bool
    """Reads only: nothing can be owned or set."""
    heartbeat_s: float
    gpus: list[GpuInfo]


class Done(Reply, tag="done", frozen=True):
    """It is done."""


class Applied(Reply, tag="applied", frozen=True):
    """A command is in force on every GPU of its group: read after it, they show no higher clock and no other cap."""

    group: str
    setting: Setting
    value: float | None
    found: float | None
    """The highest clock or power limit that was read; None where no GPU tells."""
    wait_ms: float
    """In the owner before the driver was called: other calls, the rate limit."""
    driver_ms: float
    """In the driver; zero if the setting was in force already."""
    settle_ms: float
    """From the driver's return, or from the command if it was in force already, until it was read."""


class Superseded(Reply, tag="superseded", frozen=True):
    """A newer command took the place of this one before it was executed, or before it was seen in force."""

    group: str
    setting: Setting


class Readings(Reply, tag="readings", frozen=True):
    """The meters, in the order asked for."""

    readings: list[Reading]


class Refused(Reply, tag="refused", frozen=True):
    """It was not done, or not on every GPU; a command that the driver failed: not yet."""

    code: Code
    message: str
    group: str | None = None
    setting: Setting | None = None


class Changed(Reply, tag="changed", frozen=True):
    """A clock command has returned from the driver: the clock is in force `GpuInfo.settle_s` after `time_s`."""

    gpus: list[int]
    mhz: int | None
    """None: back to the default."""
    time_s: float
    """System-wide monotonic clock."""


class Slow(Reply, tag="slow", frozen=True):
    """A driver call is taking long; everything else waits for it."""

    what: str
    seconds: float


class Lost(Reply, tag="lost", frozen=True):
    """The owner is about to hang up, for this reason. Also made by the client when the socket closes."""

    message: str


Event = Applied | Superseded | Refused | Changed | Slow | Lost
"""What comes of commands, and what comes unasked."""
AnyReply = Event | Welcome | Done | Readings

_encoder = msgspec.json.Encoder()
decode_request = msgspec.json.Decoder(AnyRequest).decode
decode_reply = msgspec.json.Decoder(AnyReply).decode


def encode(message: Request | Reply) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"

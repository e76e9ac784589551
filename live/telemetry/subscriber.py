"""The receiving end: the latest snapshot of every instance, gaps, ages, and a callback per message."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import zmq

from voltana.live.latency import LatencyHistogram
from voltana.live.telemetry.message import Clock, Message, Telemetry, WrongMessageError, decode
from voltana.state import LoadSnapshot

logger = logging.getLogger(__name__)

HIGH_WATER_MARK = 1024
"""Messages kept while this process is busy."""

SWEEP_S = 0.05
"""The socket is looked at this often besides, because ZMQ signals only that messages came, not that some are left."""


class Counters(NamedTuple):
    """What a server counts since it started."""

    requests: int = 0
    tokens: int = 0
    iterations: int = 0
    busy_s: float = 0.0

    @classmethod
    def of(cls, message: Message) -> Counters:
        """Those of a message."""
        return cls(message.arrived_requests, message.arrived_tokens, message.iterations, message.busy_s)

    def minus(self, other: Counters) -> Counters:
        """The difference."""
        return Counters(
            self.requests - other.requests,
            self.tokens - other.tokens,
            self.iterations - other.iterations,
            self.busy_s - other.busy_s,
        )


class Source:
    """What came from one instance."""

    def __init__(self) -> None:
        self.messages = 0
        self.lost = 0
        self.restarts = 0
        self.heard_s = 0.0
        """Monotonic clock of this process when the last message came."""
        self._last: Message | None = None
        self._origin = Counters()

    def take(self, message: Message) -> Counters:
        """Count a message; return its counters since the run began.

        A sequence that starts again is a server that did: its counters go on from where they were.
        """
        last = self._last
        if last is not None and message.sequence > last.sequence:
            self.lost += message.sequence - last.sequence - 1
        elif last is not None:
            self.restarts += 1
            self._origin = self._origin.minus(Counters.of(last))
        self.messages += 1
        self._last = message
        return Counters.of(message).minus(self._origin)

    def begin(self) -> None:
        """The run begins with the last message."""
        self._origin = Counters() if self._last is None else Counters.of(self._last)


class Subscriber:
    """Receives telemetry of any number of servers.

    Poll it with `receive`, or let an event loop do so with `attach`.

    Args:
        on_telemetry: called with everything that comes in, in order.
    """

    def __init__(self, on_telemetry: Callable[[Telemetry], None] = lambda telemetry: None) -> None:
        self._on_telemetry = on_telemetry
        self.latest: dict[str, Telemetry] = {}
        self.sources: dict[str, Source] = {}
        self.rejected = 0
        """Messages that could not be read."""
        self.transport_latency = LatencyHistogram()
        """From the publication of a message until its arrival here, since the run began."""
        self.start = Clock.now()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._detach: Callable[[], None] = lambda: None

    def connect(self, endpoint: str) -> None:
        """Listen to a publisher at ``ipc://PATH`` or ``tcp://HOST:PORT``, which need not be there yet."""
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        socket.subscribe(b"")
        socket.connect(endpoint)
        self._sockets.append(socket)

    def begin(self) -> None:
        """A run starts now: times and counters are 0 at this instant."""
        self.start = Clock.now()
        self.transport_latency = LatencyHistogram()
        for source in self.sources.values():
            source.begin()

    def load(self, instance: str) -> LoadSnapshot | None:
        """The latest snapshot of an instance, if any has come."""
        latest = self.latest.get(instance)
        return None if latest is None else latest.load

    def age_s(self, instance: str) -> float:
        """Time since the last message of an instance; since the start of the run if none has come."""
        source = self.sources.get(instance)
        heard_s = self.start.monotonic_s if source is None else max(source.heard_s, self.start.monotonic_s)
        return time.monotonic() - heard_s

    @property
    def lost(self) -> int:
        """Messages lost on the way, of all instances."""
        return sum(source.lost for source in self.sources.values())

    def receive(self) -> int:
        """Take in whatever has come, without waiting; return how many messages."""
        return sum(map(self._drain, self._sockets))

    def _drain(self, socket: zmq.Socket[bytes]) -> int:
        taken = 0
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return taken
            taken += 1
            self._take(frames)

    def decode(self, frames: Sequence[bytes]) -> Message:
        """The message in what a publisher sent; ours are one frame each.

        Raises:
            WrongMessageError: it is none.
        """
        return decode(frames[-1])

    def _take(self, frames: Sequence[bytes]) -> None:
        now = Clock.now()
        try:
            message = self.decode(frames)
        except WrongMessageError as error:
            if not self.rejected:
                logger.error("telemetry ignored: %s", error)
            self.rejected += 1
            return
        source = self.sources.setdefault(message.instance, Source())
        source.heard_s = now.monotonic_s
        counters = source.take(message)
        load = LoadSnapshot(
            self.start.seconds_to(message.clock),
            message.clock_mhz,
            message.batch_size,
            message.batch_tokens,
            message.queued,
            message.queued_tokens,
            message.longest_wait_s,
            message.idle_s,
            *counters,
        )
        telemetry = Telemetry(
            message.instance,
            message.phase,
            load,
            message.max_kv_tokens,
            now.monotonic_s,
            message.clock.seconds_to(now),
        )
        self.latest[message.instance] = telemetry
        self.transport_latency.add(max(0.0, telemetry.transport_s))
        self._on_telemetry(telemetry)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Receive whenever something comes while the loop runs, until `close`."""
        numbers = [int(socket.getsockopt(zmq.FD)) for socket in self._sockets]
        for number in numbers:
            loop.add_reader(number, self.receive)
        sweep = asyncio.ensure_future(self._sweep(), loop=loop)

        def detach() -> None:
            sweep.cancel()
            for number in numbers:
                loop.remove_reader(number)

        self._detach = detach

    async def _sweep(self) -> None:
        while True:
            self.receive()
            await asyncio.sleep(SWEEP_S)

    def close(self) -> None:
        """Stop listening."""
        self._detach()
        self._detach = lambda: None
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

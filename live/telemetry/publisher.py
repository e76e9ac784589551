"""The sending end: never waits, and loses messages rather than memory or time."""

from __future__ import annotations

import time
from pathlib import Path

import zmq

from voltana.live.telemetry.message import VERSION, Message, encode
from voltana.state import Phase

HIGH_WATER_MARK = 64
"""Messages kept for a subscriber that does not keep up; later ones are lost to it, which it sees by the gap."""


class Publisher:
    """Publishes the load of one server.

    Args:
        endpoint: what to listen on, ``ipc://PATH`` or ``tcp://HOST:PORT``; subscribers connect to it. The socket of
            an ``ipc`` endpoint is as private as the folder that holds it.
        instance: name of the server in the cluster.
        phase: what it does.
        max_kv_tokens: KV tokens that fit; 0: not known.

    Raises:
        zmq.ZMQError: the endpoint is malformed or taken.
    """

    def __init__(self, endpoint: str, instance: str, phase: Phase, max_kv_tokens: int = 0) -> None:
        self._endpoint = endpoint
        self.instance = instance
        self.phase: Phase = phase
        self.max_kv_tokens = max_kv_tokens
        self.sent = 0
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self._socket.close()
            raise

    def publish(
        self,
        batch_size: int,
        batch_tokens: int,
        queued: int,
        queued_tokens: int,
        longest_wait_s: float,
        idle_s: float,
        arrived_requests: int,
        arrived_tokens: int,
        iterations: int,
        busy_s: float,
        clock_mhz: int = 0,
    ) -> None:
        """Publish the fields of a `LoadSnapshot` with the time of now."""
        message = Message(
            VERSION,
            self.instance,
            self.phase,
            self.sent,
            time.monotonic(),
            time.time(),
            self.max_kv_tokens,
            clock_mhz,
            batch_size,
            batch_tokens,
            queued,
            queued_tokens,
            longest_wait_s,
            idle_s,
            arrived_requests,
            arrived_tokens,
            iterations,
            busy_s,
        )
        self.sent += 1
        self._socket.send(encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Stop; what is under way is dropped. ZMQ leaves the file of an ``ipc`` endpoint, so it is removed here."""
        self._socket.close()
        scheme, _, path = self._endpoint.partition("://")
        if scheme == "ipc" and path.startswith("/"):
            Path(path).unlink(missing_ok=True)

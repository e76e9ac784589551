"""Passing an instance's answer to a client."""

from __future__ import annotations

from time import monotonic

from voltana.live.router.client import Client, Request
from voltana.live.router.core import Core
from voltana.live.router.fleet import Instance
from voltana.live.router.http1 import ResponseHead, end_to_end
from voltana.live.router.upstream import Connection, Leg, Shortage

_NOT_FORWARDED = frozenset({b"host", b"content-length", b"expect"})
_FRAMED_ANEW = frozenset({b"content-length"})
CHUNKED = (b"transfer-encoding", b"chunked")


def forwarded_head(request: Request, instance: Instance) -> bytes:
    """A client's request head as it goes to an instance, without the empty line: its own headers stay."""
    lines = [request.method, b" ", request.target, b" HTTP/1.1\r\nhost: ", instance.host_header, b"\r\n"]
    for name, value in end_to_end(request.headers, _NOT_FORWARDED):
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


class Relay:
    """One request and the leg whose answer its client gets.

    The base passes a request without a body to one instance (`/v1/models`); `Exchange` adds the second leg.

    Args:
        core: what all requests share.
        client: who asked; it answers to this object until the answer is whole.
        request: what it asked.
    """

    def __init__(self, core: Core, client: Client, request: Request) -> None:
        self.core = core
        self.client = client
        self.request = request
        self.started_s = monotonic()
        self.over = False
        self._answer: Leg | None = None
        self._began = False
        self._reframed = False
        self._progress_s = self.started_s
        client.source = self
        core.active.add(self)

    # The way there

    def forward(self, instance: Instance) -> None:
        """Send the request to one instance."""
        self._instance = instance
        instance.pool.acquire(self._send, self._unreachable)

    def _send(self, connection: Connection) -> None:
        instance = self._instance
        if self.over:
            instance.pool.release(connection)
            return
        decoded = not self.request.modern
        self._answer = Leg(connection, self, decoded=decoded, bodiless=self.request.method == b"HEAD")
        self._answer.send(forwarded_head(self.request, instance) + b"\r\n")

    def _unreachable(self, reason: str) -> None:
        if not self.over:
            self._instance.failed(reason, 1)
            self.lost(self._instance, reason)

    # The client's side

    def pause(self) -> None:
        """The client does not keep up: leave the rest at the instance."""
        if self._answer is not None:
            self._answer.pause()

    def resume(self) -> None:
        """It does again."""
        self._progress_s = monotonic()
        if self._answer is not None:
            self._answer.resume()

    def client_gone(self) -> None:
        """Give all legs up."""
        if not self.over:
            self.core.metrics.requests[self.request.route, "499"] += not self._began
            self.end("disconnected")

    # The way back

    def on_head(self, leg: Leg, head: ResponseHead) -> None:
        """Pass the head on."""
        self.begin(leg, head)

    def on_body(self, leg: Leg, data: bytes) -> None:
        """Pass a part of the body on, and the following chunks without asking."""
        self.pass_on(data)
        if leg.live:
            leg.pass_to(self.client.write)

    def on_complete(self, leg: Leg) -> None:
        """The answer is whole."""
        self.finish()

    def on_failure(self, leg: Leg, reason: str) -> None:
        """The answer will not become whole."""
        self._instance.failed(reason, self.core.settings.fail_after)
        self.lost(self._instance, reason)

    def begin(self, leg: Leg, head: ResponseHead, framed: bool = False) -> None:
        """Begin the client's answer with a leg's head.

        Args:
            leg: whose answer the client gets from now on.
            head: its head.
            framed: whether the body will come by `pass_on` in another length than the head tells.
        """
        self._answer, self._began = leg, True
        self._reframed = (framed or leg.decoded) and (framed or head.framing.chunked) and self.request.modern
        headers = end_to_end(head.headers, _FRAMED_ANEW)
        length = next((header for header in head.headers if header[0] == b"content-length"), None)
        if length is not None and not framed and not head.framing.chunked:
            headers.append(length)
        elif self.request.modern and (head.framing.chunked or framed):
            headers.append(CHUNKED)
        elif not head.framing.empty:
            self.client.close_after_answer()
        self.core.metrics.requests[self.request.route, str(head.status)] += 1
        self.client.head(head.status, headers)
        if self.client.paused:
            leg.pause()

    def pass_on(self, data: bytes) -> None:
        """Write a part of the answer's body."""
        self.client.write(b"%x\r\n%b\r\n" % (len(data), data) if self._reframed else data)

    def finish(self) -> None:
        """The client has its whole answer."""
        if self._reframed:
            self.client.write(b"0\r\n\r\n")
        self.client.finish()
        self.end("completed")

    def fail(self, status: int, message: str) -> None:
        """Answer with an error, or break off the answer under way: a client must not take it for whole."""
        if self.over:
            return
        if self._began:
            self.client.break_off()
        else:
            self._answer_error(status, message)
        self.end("failed")

    def lost(self, instance: Instance, reason: str) -> None:
        """Answer that an instance, or the way there, failed."""
        if isinstance(reason, Shortage):
            self.refuse(reason)
        else:
            self.fail(502, f"{instance.url} {reason}")

    def refuse(self, message: str) -> None:
        """Answer that there is no room."""
        self._answer_error(503, message)
        self.end("refused")

    def _answer_error(self, status: int, message: str) -> None:
        self.core.metrics.requests[self.request.route, str(status)] += 1
        code = {500: "policy_failed", 502: "upstream_failed", 503: "overloaded", 504: "upstream_timeout"}.get(
            status, "bad_request"
        )
        self.client.error(status, message, code)

    def end(self, outcome: str) -> None:
        """It is over, however: let go of everything."""
        self.over = True
        self.core.active.discard(self)
        if self._answer is not None:
            self._answer.abort()

    # Time

    def sweep(self, now_s: float) -> None:
        """Give up what takes too long."""
        leg, limits = self._answer, self.core.settings
        if leg is None or not leg.live or leg.connection is None:
            return
        if leg.connection.active or self.client.paused:
            leg.connection.active, self._progress_s = False, now_s
        elif now_s - max(self._progress_s, leg.sent_s) > (
            limits.idle_timeout_s if self._began else limits.first_byte_timeout_s
        ):
            self.timed_out(leg)

    def timed_out(self, leg: Leg) -> None:
        """A leg went silent."""
        self._instance.failed("went silent", self.core.settings.fail_after)
        self.fail(504, f"{self._instance.url} did not answer in time")

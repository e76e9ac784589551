"""One generation request: its prefill and its decode leg, and what becomes of them."""

from __future__ import annotations

from functools import partial
from time import monotonic

from voltana.live.router.body import Payload, Prompts, bootstrap_parts
from voltana.live.router.client import Client, Request
from voltana.live.router.core import Core, Routed
from voltana.live.router.fleet import Group, Instance
from voltana.live.router.http1 import ResponseHead, end_to_end
from voltana.live.router.logprobs import StreamMerger, first_error, merge_answers
from voltana.live.router.relay import Relay, forwarded_head
from voltana.live.router.upstream import Connection, Leg, Shortage
from voltana.state import RequestInfo

_KEPT_OF_PREFILL = 64 * 1024
"""Bytes of prefill's answer kept to look for an error; beyond, it is no error."""
_KEPT_FOR_MERGING = 64 * 1024 * 1024
_HELD_FOR_MERGING = 1024 * 1024
"""Bytes of decode's stream taken before prefill's logprobs are there; beyond, it is not read for a while."""


class _Side:
    """One of the two legs, from choosing its instance on."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.instance: Instance | None = None
        self.connection: Connection | None = None
        self.leg: Leg | None = None
        self.tried: frozenset[Instance] = frozenset()
        self.refusal = ""


class _Drain:
    """Takes the rest of an answer nobody waits for, so that its connection can be kept."""

    def __init__(self, core: Core, leg: Leg) -> None:
        self._core = core
        self._leg = leg
        self._since_s = monotonic()
        leg.owner = self
        core.active.add(self)

    def on_head(self, leg: Leg, head: ResponseHead) -> None:
        """Nothing to do."""

    def on_body(self, leg: Leg, data: bytes) -> None:
        """Nothing to do."""

    def on_complete(self, leg: Leg) -> None:
        """Done."""
        self._core.active.discard(self)

    def on_failure(self, leg: Leg, reason: str) -> None:
        """Done too."""
        self._core.active.discard(self)

    def sweep(self, now_s: float) -> None:
        """Wait no longer than at a stop."""
        if now_s - self._since_s > self._core.settings.drain_s:
            self.fail(0, "")

    def fail(self, status: int, message: str) -> None:
        """Drop the connection."""
        self._leg.abort()
        self._core.active.discard(self)


class Exchange(Relay):
    """Sends a request to a prefill and a decode instance at once and passes decode's answer to the client.

    Both instances are chosen when the request gets its place, or when a scheduler sends it to prefill, because SGLang
    needs both legs at the same time (the simulator asks the decode router only after prefill). Nothing is sent before
    both connections stand, so an unreachable instance can be replaced without risk. An error of prefill is passed on as
    long as decode has not begun to answer: decode alone would wait for a KV cache that never comes.

    Args:
        core, client, request: as `Relay`.
        prompts: what the request's body holds.
    """

    def __init__(self, core: Core, client: Client, request: Request, prompts: Prompts) -> None:
        super().__init__(core, client, request)
        self.prompts = prompts
        self.request_id = core.next_id()
        self.arrival_s = core.time_s()
        self._info = RequestInfo(self.request_id, self.arrival_s, prompts.tokens)
        self.prefill = _Side(core.prefill)
        self.decode = _Side(core.decode)
        self.prefill_payload: list[bytes] = []
        self._prefill_bytes = 0
        self._prefill_limit = _KEPT_OF_PREFILL
        self._first_byte = False
        self._placed = False
        self._status = 0

    # The way there

    def start(self) -> None:
        """Choose the instances and connect."""
        self._placed = True
        self._place(self.prefill)

    def _place(self, side: _Side) -> None:
        try:
            side.group.place(self._info, self.prompts.number, side.tried, partial(self._chosen, side))
        except Exception as error:  # of the policy: the request has its answer, and whoever runs the router decides
            self.core.on_policy_error(error)
            self.fail(500, f"the router's policy failed for {side.group.instances[0].phase}")

    def _chosen(self, side: _Side, instance: Instance | None) -> None:
        self._connect(side, instance)
        if side is self.prefill and self.decode.instance is None and not self.over:
            self._place(self.decode)

    def _connect(self, side: _Side, instance: Instance | None) -> None:
        side.instance = instance
        if instance is not None:
            self._announce()
            instance.pool.acquire(partial(self._connected, side), partial(self._refused, side))
        elif side.refusal:
            self.fail(502, side.refusal)
        else:
            self.refuse(f"no {side.group.instances[0].phase} instance is up")

    def _announce(self) -> None:
        prefill, decode, observer = self.prefill.instance, self.decode.instance, self.core.observer
        if observer is None or prefill is None or decode is None:
            return
        tag = self.request.header(b"x-request-id")
        routed = Routed(
            self.request_id,
            self.prompts.rid or (tag.decode("latin-1") if tag else None),
            self.arrival_s,
            self.prompts.tokens,
            self.prompts.number,
            self.prefill.group.instances.index(prefill),
            self.decode.group.instances.index(decode),
        )
        observer.on_request(routed)

    def _refused(self, side: _Side, reason: str) -> None:
        if self.over or side.instance is None:
            return
        side.instance.failed(reason, 1)
        if isinstance(reason, Shortage):
            self.refuse(reason)
            return
        side.instance.account.gone(self.prompts.number, self.prompts.tokens, arrived=False)
        side.refusal = f"{side.instance.url} {reason}"
        side.tried |= {side.instance}
        side.instance = None
        self.core.metrics.retries += 1
        self._place(side)

    def _connected(self, side: _Side, connection: Connection) -> None:
        if side.instance is None or self.over:
            connection.pool.release(connection)
            return
        side.connection = connection
        self._send_both()

    def _send_both(self) -> None:
        prefill, decode = self.prefill, self.decode
        if prefill.connection is None or decode.connection is None:
            return
        for side in (prefill, decode):
            if side.connection is not None and side.connection.closed and side.instance is not None:
                side.connection = None  # a kept one closed while the other was made
                side.instance.pool.acquire(partial(self._connected, side), partial(self._refused, side), fresh=True)
                return
        assert prefill.instance is not None
        host, port = prefill.instance.host, prefill.instance.bootstrap_port
        parts = bootstrap_parts(self.request.body, self.prompts, host, port)
        payload = Payload(parts, 2, partial(self.client.release, self.request))
        prefill.leg = self._send_leg(prefill, payload, decoded=True)
        decode.leg = self._send_leg(decode, payload, decoded=self.decodes_decode())

    def _send_leg(self, side: _Side, payload: Payload, *, decoded: bool) -> Leg:
        assert side.connection is not None and side.instance is not None
        leg = Leg(side.connection, self, decoded=decoded)
        side.connection = None
        side.instance.requests_total += 1
        head = forwarded_head(self.request, side.instance)
        leg.send(b"%bcontent-length: %d\r\n\r\n" % (head, payload.size), payload)
        return leg

    def decodes_decode(self) -> bool:
        """Whether decode's answer is needed without its chunk framing."""
        return not self.request.modern

    # The way back

    def on_head(self, leg: Leg, head: ResponseHead) -> None:
        """Pass on an error of either at once; hold decode's good head until a body follows: prefill may yet fail."""
        self._side_of(leg).succeeded()
        if head.status >= 400 and not self._began:
            self._abort_other(leg)
            self._begin(leg, head)

    def decode_began(self) -> None:
        """Pass decode's head on, if it has not been yet."""
        leg = self.decode.leg
        if not self._began and leg is not None and leg.head is not None:
            self._begin(leg, leg.head)

    def _begin(self, leg: Leg, head: ResponseHead, framed: bool = False) -> None:
        self._status = head.status
        self.begin(leg, head, framed)

    def on_body(self, leg: Leg, data: bytes) -> None:
        """Pass the answer on; keep what else prefill says."""
        if leg is self.decode.leg:
            self.decode_began()  # a body proves that prefill has done its part
        if leg is not self._answer:
            self._keep(data)
            return
        self.saw_first_byte()
        self.pass_on(data)
        if leg.live:
            leg.pass_to(self.client.write)

    def saw_first_byte(self) -> None:
        """Note when the answer's body began."""
        if self._first_byte:
            return
        self._first_byte = True
        self.core.metrics.ttft_s.add(monotonic() - self.started_s)
        if self.core.observer is not None:
            self.core.observer.on_first_byte(self.request_id, self.core.time_s())

    def _keep(self, data: bytes) -> None:
        self._prefill_bytes += len(data)
        if self._prefill_bytes <= self._prefill_limit:
            self.prefill_payload.append(data)

    def on_complete(self, leg: Leg) -> None:
        """Finish with the answer's end; see whether a whole prefill answer tells of an error."""
        if leg is self.decode.leg:
            self.decode_began()
        if leg is self._answer:
            self.finish()
        elif leg is self.prefill.leg:
            self.prefill_completed(leg)

    def prefill_completed(self, leg: Leg) -> None:
        """An error may also stand in prefill's stream, behind a good status."""
        payload = b"".join(self.prefill_payload)
        if not self._began and leg.head is not None and first_error(payload):
            self._abort_other(leg)
            self.answer_whole(leg.head, payload)

    def answer_whole(self, head: ResponseHead, body: bytes) -> None:
        """Answer with a leg's head and a body that is at hand."""
        self._status, self._began = head.status, True
        self.saw_first_byte()
        self.core.metrics.requests[self.request.route, str(head.status)] += 1
        self.client.answer(head.status, body, end_to_end(head.headers, frozenset({b"content-length"})))
        self.end("completed")

    def on_failure(self, leg: Leg, reason: str) -> None:
        """Fail, unless it is the end of a prefill leg that is no longer needed."""
        instance = self._side_of(leg)
        instance.failed(reason, self.core.settings.fail_after)
        if leg is self._answer or not self._began:
            self.lost(instance, reason)

    def _side_of(self, leg: Leg) -> Instance:
        instance = (self.prefill if leg is self.prefill.leg else self.decode).instance
        assert instance is not None
        return instance

    def _abort_other(self, leg: Leg) -> None:
        other = self.decode.leg if leg is self.prefill.leg else self.prefill.leg
        if other is not None:
            other.abort()

    # The end

    def timed_out(self, leg: Leg) -> None:
        """A leg went silent: prefill's, if that has not answered, for decode waits for it."""
        first = self.prefill.leg
        instance = self._side_of(first if first is not None and first.live and not self._began else leg)
        instance.failed("went silent", self.core.settings.fail_after)
        self.fail(504, f"{instance.url} did not answer in time")

    def sweep(self, now_s: float) -> None:
        """Give up what takes too long: before there is an answer, look at the leg it is to come from."""
        if not self._began:
            self._answer = self.decode.leg
        super().sweep(now_s)

    def end(self, outcome: str) -> None:
        """It is over: close both legs, but for a prefill leg whose rest is only to be read."""
        if self.over:
            return
        if outcome == "completed" and self._status >= 400:
            outcome = "rejected"
        leg = self.prefill.leg
        if outcome == "completed" and leg is not None and leg.live:
            _Drain(self.core, leg)
        super().end(outcome)
        self.core.prefill.withdraw(self._info)
        for side in (self.prefill, self.decode):
            self._close(side, arrived=outcome not in ("rejected", "refused"))
        self.core.metrics.outcomes[outcome] += 1
        self.core.metrics.duration_s.add(monotonic() - self.started_s)
        if self.core.observer is not None:
            self.core.observer.on_end(self.request_id, self.core.time_s(), outcome)
        self._leave()

    def _close(self, side: _Side, arrived: bool) -> None:
        if side.leg is not None and side.leg.owner is self:
            side.leg.abort()
        if side.connection is not None:
            side.connection.pool.release(side.connection)
            side.connection = None
        if side.instance is not None:
            side.instance.account.gone(self.prompts.number, self.prompts.tokens, arrived=arrived)

    def _leave(self) -> None:
        if self._placed:
            self.core.left()
        elif self in self.core.queue:
            self.core.queue.remove(self)


class MergingExchange(Exchange):
    """An exchange whose answer carries the logprobs of the prompt, which prefill alone has.

    Decode's answer waits for prefill's, which in SGLang is whole before decode begins.
    """

    def __init__(self, core: Core, client: Client, request: Request, prompts: Prompts) -> None:
        super().__init__(core, client, request, prompts)
        self._prefill_limit = _KEPT_FOR_MERGING
        self._payload = bytearray()
        self._merger: StreamMerger | None = None
        self._decode_whole = False

    def decodes_decode(self) -> bool:
        """Always."""
        return True

    def on_body(self, leg: Leg, data: bytes) -> None:
        """Hold decode's answer as far as it cannot be merged yet."""
        if leg is not self.decode.leg or (self._began and self._merger is None):
            super().on_body(leg, data)
        elif self._merger is not None:
            self._pass_merged(data)
        else:
            self._hold(leg, data)

    def _hold(self, leg: Leg, data: bytes) -> None:
        self._payload += data
        if self._streams(leg):
            if len(self._payload) > _HELD_FOR_MERGING:
                leg.pause()
        elif len(self._payload) > _KEPT_FOR_MERGING:
            self.fail(502, f"{self._side_of(leg).url} answered with too long a body to merge logprobs")

    @staticmethod
    def _streams(leg: Leg) -> bool:
        headers = leg.head.headers if leg.head is not None else ()
        return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)

    def _pass_merged(self, data: bytes) -> None:
        assert self._merger is not None
        merged = self._merger.feed(data)
        if merged:
            self.saw_first_byte()
            self.pass_on(merged)

    def on_complete(self, leg: Leg) -> None:
        """Merge once both are there."""
        if leg is self._answer and self._merger is None:
            self.finish()
        elif leg is self.prefill.leg:
            self.prefill_completed(leg)
            self._merge()
        else:
            self._decode_whole = True
            self._merge()

    def _merge(self) -> None:
        decode, prefill = self.decode.leg, self.prefill.leg
        if self.over or decode is None or prefill is None or decode.head is None or prefill.live:
            return
        if self._streams(decode):
            self._merge_stream(decode, decode.head)
        elif self._decode_whole:
            source = b"".join(self.prefill_payload)
            self.answer_whole(decode.head, merge_answers(source, bytes(self._payload)))

    def _merge_stream(self, decode: Leg, head: ResponseHead) -> None:
        if self._merger is None:
            self._merger = StreamMerger(b"".join(self.prefill_payload))
            self._begin(decode, head, framed=True)
            if not self.client.paused:
                decode.resume()
            held, self._payload = bytes(self._payload), bytearray()
            self._pass_merged(held)
        if self._decode_whole:
            rest = self._merger.rest()
            if rest:
                self.pass_on(rest)
            self.finish()

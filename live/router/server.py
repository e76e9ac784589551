"""The router: listens, answers what is its own, and starts exchanges."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import cast

import msgspec

from voltana.live.http import Answer, ask
from voltana.live.router.body import DECODED_BYTES, GENERATES, BodyError, read_prompts
from voltana.live.router.client import JSON, Buffered, Client, Request
from voltana.live.router.core import Core, Observer, log_policy_error
from voltana.live.router.descriptors import backlog, fit
from voltana.live.router.exchange import Exchange, MergingExchange
from voltana.live.router.fleet import Backend, Group, Instance, QueuedGroup, watch
from voltana.live.router.http1 import end_to_end, response_head
from voltana.live.router.metrics import family
from voltana.live.router.relay import Relay
from voltana.live.router.settings import RouterSettings
from voltana.state import PrefillScheduler, Router

ASKS_DECODE = frozenset(
    {"/v1/models", "/v1/models/{model}", "/model_info", "/get_model_info", "/server_info", "/get_server_info"}
)
TEXT = (b"content-type", b"text/plain; version=0.0.4")
_SWEEP_S = 1.0
_FAN_OUT_TIMEOUT_S = 10.0
_CLOSING_S = 1.0
_ANSWERED_ANEW = frozenset({b"host", b"content-length", b"content-type", b"expect"})


_Route = tuple[tuple[bytes, ...], Callable[[Client, Request], None]]
"""Methods, and who answers."""


class RouterServer:
    """A P/D router in front of stock SGLang servers, in the running event loop.

    Use it as `async with RouterServer(...) as router`, or call `start` and `stop`.

    Args:
        prefill, decode: the servers.
        prefill_policy, decode_policy: choose among them; objects of their own each, as in the simulator. Prefill's may
            be a scheduler, which holds requests back; call `core.prefill.heard` when telemetry of prefill comes.
        settings: limits and time-outs.
        observer: is told of every request.
        origin_s: the `time.monotonic()` that is zero for policies and observer; default: now.
        on_policy_error: is told what a policy raised; the request is answered with status 500.

    Raises:
        UserError: a URL that is none, no instance of a phase, or too few file descriptors.
    """

    def __init__(
        self,
        prefill: Sequence[Backend],
        decode: Sequence[Backend],
        prefill_policy: Router | PrefillScheduler,
        decode_policy: Router,
        settings: RouterSettings | None = None,
        observer: Observer | None = None,
        origin_s: float | None = None,
        on_policy_error: Callable[[Exception], None] = log_policy_error,
    ) -> None:
        self._settings = fit(settings or RouterSettings())
        self._loop = asyncio.get_running_loop()
        origin_s = monotonic() if origin_s is None else origin_s
        before = [Instance(each, "prefill", self._settings, self._loop) for each in prefill]
        after = [Instance(each, "decode", self._settings, self._loop) for each in decode]
        first = (
            QueuedGroup(before, prefill_policy, self._loop, lambda: monotonic() - origin_s, on_policy_error)
            if isinstance(prefill_policy, PrefillScheduler)
            else Group(before, prefill_policy)
        )
        self.core = Core(self._settings, first, Group(after, decode_policy), observer, origin_s, on_policy_error)
        self._instances = [*before, *after]
        for instance in self._instances:
            instance.pool.make_room = self._drop_idle
        self._buffered = Buffered(self._settings.max_buffered_bytes)
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._routes = self._make_routes()
        self._stopping = False
        self.port = self._settings.port
        """The port listened at, once started."""

    # Life

    async def start(self) -> None:
        """Listen, and watch the instances' health.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await self._loop.create_server(
            self._client, self._settings.host, self._settings.port, backlog=backlog()
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        for instance in self._instances:
            self._spawn(watch(instance, self._settings.health_interval_s, self._settings.health_timeout_s))
        self._spawn(self._sweep())

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def stop(self) -> None:
        """Take no more connections, let requests in flight end for a while, close everything.

        When it returns, every request has had its end, no connection is left, and none comes.
        """
        self._stopping = True
        if self._server is not None:
            for sock in self._server.sockets:  # asyncio cannot close a server while it makes transports
                self._loop.remove_reader(sock.fileno())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._server.close()
        for client in list(self._clients):
            client.stop()
        deadline_s = monotonic() + self._settings.drain_s
        while (self.core.in_flight or self.core.queue) and monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        while self.core.active:
            for active in list(self.core.active):
                active.fail(503, "the router stops")
        for client in list(self._clients):
            client.close()
        closing = [*self._tasks, *(task for instance in self._instances for task in instance.pool.close())]
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        await self._all_closed()

    async def _all_closed(self) -> None:
        """Give clients a moment to take what was written."""
        deadline_s = monotonic() + _CLOSING_S
        while self._clients and monotonic() < deadline_s:
            await asyncio.sleep(0.005)
        for client in list(self._clients):
            client.cut()
        await asyncio.sleep(0.01)

    async def __aenter__(self) -> RouterServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _drop_idle(self) -> int:
        return sum(instance.pool.drop_idle() for instance in self._instances)

    def _spawn(self, work: Coroutine[object, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = monotonic()
            self.core.sweep(now_s)
            for client in list(self._clients):
                client.sweep(now_s)
            for instance in self._instances:
                instance.pool.sweep(now_s)

    # Clients

    def _client(self) -> asyncio.Protocol:
        if len(self._clients) >= self._settings.max_connections or self._stopping:
            return _Full()
        return Client(self._settings, self._buffered, self._handle, self._made, self._clients.discard)

    def _made(self, client: Client) -> None:
        if self._stopping:
            client.cut()
        else:
            self._clients.add(client)

    def _handle(self, client: Client, request: Request) -> None:
        path = request.path
        route = "/v1/models/{model}" if path.startswith("/v1/models/") else path
        known = self._routes.get(route)
        request.route = "other" if known is None else route
        if known is None:
            self._error(client, request, 404, f"there is no {path[:200]} here", "not_found")
        elif request.method == b"OPTIONS" and request.header(b"access-control-request-method") is not None:
            self._preflight(client, request)
        else:
            self._only(client, request, *known)

    def _make_routes(self) -> dict[str, _Route]:
        get, post = (b"GET", b"HEAD"), (b"POST",)
        routes: dict[str, _Route] = dict.fromkeys(GENERATES, (post, self._generate))
        routes |= dict.fromkeys(ASKS_DECODE, (get, self._ask_decode))
        return routes | {
            "/health": (get, self._health),
            "/health_generate": ((b"GET",), partial(self._fan_out, _all_healthy)),
            "/metrics": (get, self._metrics),
            "/v1/loads": ((b"GET",), partial(self._fan_out, _loads)),
            "/flush_cache": ((b"GET", b"POST"), partial(self._fan_out, _all_done)),
            "/abort_request": (post, partial(self._fan_out, _all_done)),
        }

    def _preflight(self, client: Client, request: Request) -> None:
        """What a browser asks before it sends a request from another origin: all is allowed, as by SGLang."""
        self._count(request, 200)
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", request.header(b"origin") or b"*"),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-allow-methods", b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
            (b"access-control-allow-headers", request.header(b"access-control-request-headers") or b"*"),
            (b"access-control-max-age", b"600"),
        ]
        client.answer(200, b"OK", headers)

    def _only(
        self,
        client: Client,
        request: Request,
        methods: tuple[bytes, ...],
        answer: Callable[[Client, Request], None],
    ) -> None:
        if request.method in methods:
            answer(client, request)
            return
        allowed = b", ".join(methods)
        message = f"{request.path} takes {allowed.decode()}"
        self._error(client, request, 405, message, "method_not_allowed", [(b"allow", allowed)])

    def _count(self, request: Request, status: int) -> None:
        self.core.metrics.requests[request.route, str(status)] += 1

    def _error(
        self,
        client: Client,
        request: Request,
        status: int,
        message: str,
        code: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._count(request, status)
        client.error(status, message, code, headers)

    # Passed to instances

    def _generate(self, client: Client, request: Request) -> None:
        try:
            limits = self._settings
            prompts = read_prompts(request.body, request.path, limits.chars_per_token, limits.max_prompts)
        except BodyError as error:
            self._error(client, request, 400, str(error), error.code)
            return
        kind = MergingExchange if prompts.wants_logprobs and request.path == "/generate" else Exchange
        exchange = kind(self.core, client, request, prompts)
        if self._stopping:
            exchange.refuse("the router stops")
        else:
            self.core.admit(exchange)

    def _ask_decode(self, client: Client, request: Request) -> None:
        up = self.core.decode.up
        if up:
            Relay(self.core, client, request).forward(up[0])
        else:
            self._error(client, request, 503, "no decode instance is up", "overloaded")

    def _fan_out(self, merge: _Merge, client: Client, request: Request) -> None:
        try:
            if request.body.is_long:
                raise BodyError(f"a body above {DECODED_BYTES} bytes", "too_long")
            body = msgspec.json.decode(request.body.data) if request.body.data else None
        except (BodyError, msgspec.DecodeError, RecursionError) as error:
            self._error(client, request, 400, str(error), "bad_json")
            return
        source = _FanOut()
        client.source = source
        self._spawn(self._ask_all(merge, client, request, body, source))

    async def _ask_all(self, merge: _Merge, client: Client, request: Request, body: object, source: _FanOut) -> None:
        headers = end_to_end(request.headers, _ANSWERED_ANEW)
        asked = [each for each in self._instances if each.up]
        method, target = request.method.decode(), request.target.decode("latin-1")
        answers = await asyncio.gather(
            *(
                ask(each.url, target, body=body, method=method, headers=headers, timeout_s=_FAN_OUT_TIMEOUT_S)
                for each in asked
            ),
            return_exceptions=True,
        )
        if source.gone:
            return
        status, told = merge(asked, answers)
        self._count(request, status)
        client.answer(status, b"" if told is None else json.dumps(told).encode())

    # Its own

    def _health(self, client: Client, request: Request) -> None:
        up = {group.instances[0].phase: len(group.up) for group in (self.core.prefill, self.core.decode)}
        status = 200 if all(up.values()) else 503
        self._count(request, status)
        body = json.dumps({"status": "ok" if status == 200 else "unavailable", "up": up}).encode()
        client.answer(status, body, [JSON] if status == 200 else [JSON, (b"retry-after", b"1")])

    def _metrics(self, client: Client, request: Request) -> None:
        self._count(request, 200)
        lines = [*self.core.metrics.lines(), *self._gauges()]
        client.answer(200, ("\n".join(lines) + "\n").encode(), [TEXT])

    def _gauges(self) -> Iterator[str]:
        for name, text, value in (
            ("in_flight", "Requests at the instances", self.core.in_flight),
            ("queued", "Requests waiting for a place", len(self.core.queue)),
            ("client_connections", "Clients connected", len(self._clients)),
            ("buffered_bytes", "Request bodies held", self._buffered.held),
        ):
            yield from family(name, "gauge", text, [({}, value)])
        labels = [({"phase": each.phase, "url": each.url}, each) for each in self._instances]
        per_instance: tuple[tuple[str, str, str, Callable[[Instance], float]], ...] = (
            ("instance_up", "gauge", "Whether an instance takes requests", lambda each: int(each.up)),
            ("instance_in_flight", "gauge", "Prompts at an instance", lambda each: each.account.own.requests),
            ("instance_connections", "gauge", "Connections to an instance", lambda each: each.pool.open),
            ("instance_requests_total", "counter", "Requests sent to an instance", lambda each: each.requests_total),
            ("instance_failures_total", "counter", "Answers that did not come", lambda each: each.failures_total),
        )
        for name, kind, text, value_of in per_instance:
            yield from family(name, kind, text, [(label, value_of(each)) for label, each in labels])


_Merge = Callable[[Sequence[Instance], Sequence[Answer | BaseException]], tuple[int, object]]
"""Makes of all instances' answers a status and a body; None: an empty one."""


class _FanOut:
    """A client that waits for the answers of all instances."""

    gone = False

    def pause(self) -> None:
        """Nothing is being made."""

    def resume(self) -> None:
        """Nothing was."""

    def client_gone(self) -> None:
        """Nobody to answer."""
        self.gone = True


class _Full(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so and close."""
        headers = [(b"retry-after", b"1"), (b"connection", b"close"), (b"content-length", b"0")]
        cast(asyncio.Transport, transport).write(response_head(503, headers))
        transport.close()


def _loads(asked: Sequence[Instance], answers: Sequence[Answer | BaseException]) -> tuple[int, object]:
    """All loads in one list, each with its instance."""
    loads: list[object] = []
    for instance, answer in zip(asked, answers, strict=True):
        if isinstance(answer, Answer) and answer.status == 200:
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                whose = {"instance": instance.url, "phase": instance.phase}
                loads += [{**load, **whose} for load in json.loads(answer.body).get("loads", ())]
    return 200, {"loads": loads}


def _all_healthy(asked: Sequence[Instance], answers: Sequence[Answer | BaseException]) -> tuple[int, object]:
    """Whether every instance made a token, and there is one of each phase."""
    healthy = all(isinstance(answer, Answer) and answer.status == 200 for answer in answers)
    return (200 if healthy and {each.phase for each in asked} == {"prefill", "decode"} else 503), None


def _all_done(asked: Sequence[Instance], answers: Sequence[Answer | BaseException]) -> tuple[int, object]:
    """Whether every instance did what it was asked."""
    told = {
        instance.url: answer.status if isinstance(answer, Answer) else str(answer) or type(answer).__name__
        for instance, answer in zip(asked, answers, strict=True)
    }
    return (200 if all(status == 200 for status in told.values()) else 502), {"instances": told}

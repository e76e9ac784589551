"""An emulated server: HTTP in front, the instance of the simulator behind, a timer between them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from functools import partial
from http import HTTPStatus
from itertools import count

import zmq

from voltana.errors import UserError
from voltana.live.servers.emulated.answers import Answer, error_body
from voltana.live.servers.emulated.calls import KINDS, BadRequestError, Choice, parse
from voltana.live.servers.emulated.config import ServerConfig
from voltana.live.servers.emulated.driver import Driver, RowHistory
from voltana.live.servers.emulated.http import Connection, Reply, Request
from voltana.live.servers.emulated.views import Views
from voltana.live.telemetry.publisher import Publisher
from voltana.sim.plant import Plant
from voltana.sim.plant.build import decode_limits
from voltana.sim.serving.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.state import LoadSnapshot
from voltana.traces import Request as Tokens

logger = logging.getLogger(__name__)

TICK_S = 1e-3
"""Resolution of the event loop's timer. What is due within half of it is done."""

HEARTBEAT_S = 1.0
"""An idle server publishes this often."""


class Half:
    """The state of one choice of a call at this server."""

    __slots__ = ("answer", "choice", "job", "timer")

    def __init__(self, choice: Choice, answer: Answer, job: Job) -> None:
        self.choice = choice
        self.answer = answer
        self.job = job
        self.timer: asyncio.TimerHandle | None = None
        """Runs out when the other half does not come."""

    def paired(self) -> None:
        """The other half has come."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Server(ABC):
    """What both kinds share.

    Args:
        config: what the server is told.
        plant: the physics of its GPUs.
    """

    driver: Driver
    port = 0
    """Where it listens, once it does."""
    bootstrap_port = 0

    def __init__(self, config: ServerConfig, plant: Plant) -> None:
        self.config = config
        self.plant = plant
        self.limits = decode_limits(config.decode, plant, "decode")
        self.halves: set[Half] = set()
        """Requests that are not complete."""
        self.rows = RowHistory()
        self.meter = Meter(config.name, config.phase, self.rows.write)
        self.totals = {"requests": 0, "prompt_tokens": 0, "generation_tokens": 0, "aborted": 0}
        self._publisher: Publisher | None = None
        self._connections: set[Connection] = set()
        self._names = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._routes = Views(self).routes() | {("POST", path): self._generate for path in KINDS}

    # Start and end

    async def start(self) -> asyncio.Server:
        """Listen.

        Raises:
            UserError: a port or the telemetry endpoint is taken.
        """
        config = self.config
        if config.telemetry is not None:
            try:
                self._publisher = Publisher(config.telemetry, config.name, config.phase, self.kv_tokens)
            except zmq.ZMQError as error:
                raise UserError(f"telemetry: found {config.telemetry}, cannot listen there ({error})") from error
        try:
            await self._listen()
            server = await asyncio.get_running_loop().create_server(self._connection, config.host, config.port)
        except OSError as error:
            raise UserError(f"port: cannot listen on {config.host}:{config.port} ({error.strerror})") from error
        self.port = server.sockets[0].getsockname()[1]
        self.driver.advance(time.monotonic())
        self.driver.wake()
        self._beat()
        return server

    @abstractmethod
    async def _listen(self) -> None:
        """Open what the server needs besides HTTP."""

    def close(self) -> None:
        """Cut off all clients."""
        for connection in list(self._connections):
            connection.abort()
        if self._publisher is not None:
            self._publisher.close()

    def _connection(self) -> Connection:
        return Connection(self.handle, self._connections)

    def _drive(self, instance: Instance) -> Driver:
        clock = self.config.clock_mhz
        return Driver(
            instance, self.plant.gpu.clocks()[-1] if clock is None else clock, time.monotonic(), self._publish
        )

    @property
    def kv_tokens(self) -> int:
        """KV tokens that fit."""
        return self.limits.kv_tokens

    # Time

    def _now(self) -> None:
        """Bring the instance to the present."""
        self.driver.advance(time.monotonic())

    def _arm(self) -> None:
        """Be called again when the next thing happens."""
        next_s = self.driver.next_s
        if next_s == self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_s = next_s
        if next_s < math.inf:
            delay_s = next_s - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, math.inf
        now_s = time.monotonic()
        self.driver.advance(now_s + TICK_S / 2)
        self._arm()

    def _publish(self, load: LoadSnapshot) -> None:
        if self._publisher is not None:
            self._publisher.publish(
                load.batch_size,
                load.batch_tokens,
                load.queued,
                load.queued_tokens,
                load.longest_wait_s,
                load.idle_s,
                load.arrived_requests,
                load.arrived_tokens,
                load.iterations,
                load.busy_s,
                load.clock_mhz,
            )

    def _beat(self) -> None:
        self._now()
        if not self.driver.running:
            self._publish(self.driver.load())
        self._arm()
        asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    # Requests

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request, now or later."""
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            known = any(path == request.path for _, path in self._routes)
            status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
            reply.json(status, {"detail": status.phrase})
            return
        self._now()
        handler(request, reply)
        self._arm()

    def _generate(self, request: Request, reply: Reply) -> None:
        kind = KINDS[request.path]
        try:
            rid = f"{self.config.name}-{next(self._names)}"
            call = parse(kind, request.body, self.config.served_model_name, rid, request.content_type)
            self._refuse_too_much(call.choices)
        except BadRequestError as error:
            status = HTTPStatus.BAD_REQUEST
            reply.json(status, error_body(kind == "generate", status, str(error)))
            return
        limit = self.config.max_queued
        if limit is not None and self.queued + len(call.choices) > limit:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            reply.json(status, error_body(kind == "generate", status, "The request queue is full."))
            return
        answer = Answer(call, reply, self.config.stream_interval, self.config.phase == "prefill")
        halves = [Half(choice, answer, self._job(choice)) for choice in call.choices]
        reply.on_disconnect = partial(self._disconnected, halves)
        self.totals["requests"] += len(halves)
        loop = asyncio.get_running_loop()
        for half in halves:
            half.job.owner = half
            half.timer = loop.call_later(self.config.pair_timeout_s, self._timed_out, half)
        self.halves.update(halves)
        for half in halves:
            if half in self.halves:
                self._take(half)

    def _job(self, choice: Choice) -> Job:
        now_s = self.driver.now_s
        return Job(Tokens(choice.number, now_s, choice.prompt.tokens, choice.max_tokens), taken_s=now_s)

    def _refuse_too_much(self, choices: list[Choice]) -> None:
        room = self.kv_tokens
        for choice in choices:
            if choice.prompt.tokens >= room:
                raise BadRequestError(
                    f"Input length ({choice.prompt.tokens} tokens) exceeds the maximum allowed length ({room} tokens)."
                )

    @property
    def queued(self) -> int:
        """Requests that wait here, for the GPU or for their other half."""
        return len(self.halves) - self.driver.load().batch_size

    def _disconnected(self, halves: list[Half]) -> None:
        """The client has left."""
        self._now()
        for half in halves:
            if half in self.halves:
                self._forget(half, "the client closed the connection")
        self._arm()

    def _forget(self, half: Half, reason: str) -> None:
        """Drop a half that nobody waits for."""
        self.halves.discard(half)
        self.totals["aborted"] += 1
        half.paired()
        self.driver.instance.drop(half.job)
        self._drop(half, reason)

    def _fail(self, half: Half, status: HTTPStatus, message: str) -> None:
        """Fail a half, and with it the whole call, whose other choices are then dropped."""
        if half not in self.halves:
            return
        self._forget(half, message)
        for other in [other for other in self.halves if other.answer is half.answer]:
            self._forget(other, message)
        half.answer.fail(status, message)

    def _timed_out(self, half: Half) -> None:
        self._now()
        after = f"after {self.config.pair_timeout_s:g} s"
        message = f"{self.config.phase.capitalize()} of {half.choice.rid} failed: the other half did not come {after}"
        self._fail(half, HTTPStatus.INTERNAL_SERVER_ERROR, message)
        self._arm()

    def _end(self, half: Half) -> None:
        """A half is complete."""
        self.halves.discard(half)
        half.paired()

    @abstractmethod
    def _take(self, half: Half) -> None:
        """Begin with a request."""

    @abstractmethod
    def _drop(self, half: Half, reason: str) -> None:
        """Tell the other half that this one is gone."""

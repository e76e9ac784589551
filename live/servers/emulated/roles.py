"""The two kinds of emulated servers: what each does with its half of a request."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from voltana.live.servers.emulated.config import ServerConfig
from voltana.live.servers.emulated.pairing import Bootstrap, Transfers, Waiting
from voltana.live.servers.emulated.server import Half, Server
from voltana.sim.plant import Plant
from voltana.sim.serving.decode import DecodeInstance
from voltana.sim.serving.job import Job
from voltana.sim.serving.prefill import PrefillInstance
from voltana.state import LoadSnapshot


class PrefillServer(Server):
    """Computes a prompt once a decode server has asked for its room, makes the first token, hands the cache over."""

    def __init__(self, config: ServerConfig, plant: Plant) -> None:
        super().__init__(config, plant)
        self.driver = self._drive(PrefillInstance(plant, self.meter, config.prefill, self._finished))
        self._bootstrap = Bootstrap(config.link, plant.kv_bytes_per_token, self._wanted, self._dropped)
        self._rooms: dict[int, Half] = {}
        """Requests by room, from their coming to the end of their prompt."""

    async def _listen(self) -> None:
        server = await self._bootstrap.listen(self.config.host, self.config.bootstrap_port)
        self.bootstrap_port = server.sockets[0].getsockname()[1]

    def _take(self, half: Half) -> None:
        room = half.choice.room.room
        if room in self._rooms:
            self._fail(half, HTTPStatus.BAD_REQUEST, f"bootstrap room {room} is taken")
            return
        self._rooms[room] = half
        if self._bootstrap.knows(room):
            self._begin(half)

    def _begin(self, half: Half) -> None:
        half.paired()
        self.driver.submit(half.job)

    def _wanted(self, room: int) -> None:
        half = self._rooms.get(room)
        if half is not None:
            self._now()
            self._begin(half)
            self._arm()

    def _dropped(self, room: int, reason: str) -> None:
        half = self._rooms.get(room)
        if half is not None:
            self._now()
            message = f"Prefill transfer failed for request {half.choice.rid}: {reason}"
            self._fail(half, HTTPStatus.INTERNAL_SERVER_ERROR, message)
            self._arm()

    def _finished(self, job: Job) -> None:
        half: Half = job.owner
        room = half.choice.room.room
        self._rooms.pop(room, None)
        self._end(half)
        prompt_tokens = job.request.input_tokens
        self.totals["prompt_tokens"] += prompt_tokens
        self.totals["generation_tokens"] += 1
        self._bootstrap.deliver(room, prompt_tokens, self.driver.now_s)
        half.answer.token(half.choice, 1, True)

    def _drop(self, half: Half, reason: str) -> None:
        room = half.choice.room.room
        if self._rooms.get(room) is half:
            del self._rooms[room]
            self._bootstrap.fail(room, reason)


class DecodeServer(Server):
    """Asks the prefill server for a request's cache, and goes on with it when it is there.

    Between two iterations it first answers those that join the next, then those of the one that has ended, as SGLang's
    overlapped loop does: it launches the next batch before it looks at the results of the last.
    """

    def __init__(self, config: ServerConfig, plant: Plant) -> None:
        super().__init__(config, plant)
        self.driver = self._drive(
            DecodeInstance(
                plant, self.meter, self.limits, token=self._token, finished=self._finished, failed=self._outgrown
            )
        )
        self._transfers = Transfers()
        self._made: list[tuple[Half, int, bool]] = []
        """Whose tokens the iteration that has ended made: how many each has now, and whether it has all."""

    async def _listen(self) -> None:
        """Nothing: a decode server calls, it is not called."""

    def close(self) -> None:
        """Cut off all clients and prefill servers."""
        super().close()
        self._transfers.close()

    def _take(self, half: Half) -> None:
        room = half.choice.room
        if room.port is None or not room.host:
            self._fail(half, HTTPStatus.BAD_REQUEST, "bootstrap_host and bootstrap_port are needed on a decode server")
            return
        waiting = Waiting((room.host, room.port), partial(self._ready, half), partial(self._lost, half))
        if not self._transfers.want(room.room, waiting):
            self._fail(half, HTTPStatus.BAD_REQUEST, f"bootstrap room {room.room} is taken")

    def _ready(self, half: Half, first_token_s: float, arrives_s: float) -> None:
        """The prompt is computed and its cache on the way."""
        if half not in self.halves:
            return
        self._now()
        half.paired()
        self.totals["prompt_tokens"] += half.job.request.input_tokens
        half.job.prompt_done(first_token_s)
        self.driver.at(arrives_s, partial(self._arrived, half))
        self._arm()

    def _arrived(self, half: Half) -> None:
        if half in self.halves:
            self.driver.submit(half.job)

    def _token(self, job: Job, gap_s: float | None) -> None:
        half: Half = job.owner
        self.totals["generation_tokens"] += 1
        if gap_s is None:
            half.answer.token(half.choice, job.produced, job.finished)
        else:
            self._made.append((half, job.produced, job.finished))

    def _publish(self, load: LoadSnapshot) -> None:
        super()._publish(load)
        self._answer()

    def _answer(self) -> None:
        made, self._made = self._made, []
        for half, produced, finished in made:
            half.answer.token(half.choice, produced, finished)

    def _finished(self, job: Job) -> None:
        self._end(job.owner)

    def _outgrown(self, job: Job) -> None:
        self._answer()
        message = "Out of memory even after retracting all other requests in the decode batch."
        self._fail(job.owner, HTTPStatus.INTERNAL_SERVER_ERROR, message)

    def _lost(self, half: Half, reason: str) -> None:
        self._now()
        message = f"Decode transfer failed for request {half.choice.rid}: {reason}"
        self._fail(half, HTTPStatus.INTERNAL_SERVER_ERROR, message)
        self._arm()

    def _drop(self, half: Half, reason: str) -> None:
        self._transfers.drop(half.choice.room.room)


def build_server(config: ServerConfig, plant: Plant) -> Server:
    """The server of a configuration."""
    return (PrefillServer if config.phase == "prefill" else DecodeServer)(config, plant)

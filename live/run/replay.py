"""Sending the requests of a run, through a client that is a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from typing import Self

import msgspec

from voltana.live.run.load import Order, Result, Timed
from voltana.live.run.recorder import LiveRecorder
from voltana.traces.stream import Request

AHEAD_S = 10.0
"""Requests are handed to the client this long before their time."""
QUIET_S = 10.0
"""When no request comes for longer than this, that is said."""
STOP_S = 5.0
CLIENT_GONE = "the load client ended"
GONE = (ConnectionError, RuntimeError)
"""What writing to a client that has ended raises; the second in uvloop. That it has ended is seen in what it says."""


class ClientLostError(Exception):
    """The load client ended before all requests had."""


class Replay:
    """One client process; an asynchronous context manager.

    Args:
        order: what the client is told.
        recorder: is told of every request and its end.
        tell: tells a person, in a line, that nothing will happen for a while.
    """

    def __init__(self, order: Order, recorder: LiveRecorder, tell: Callable[[str], None]) -> None:
        self._order = order
        self._recorder = recorder
        self._process: Process | None = None
        self._give_up = ""
        self._tell = tell

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "voltana.live.run.load", stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._say(msgspec.to_builtins(self._order))
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Of the client."""
        return 0 if self._process is None else self._process.pid

    def _say(self, what: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(*GONE):
            self._process.stdin.write(msgspec.json.encode(what) + b"\n")

    async def run(self, requests: Iterator[Request], drain_s: float, stop: asyncio.Event) -> bool:
        """Send all requests at their times and wait for their ends.

        Args:
            requests: in the order of their arrivals.
            drain_s: after the last arrival requests get so long; what is left then has failed.
            stop: breaks off at once when set.

        Returns:
            Whether it ran to its end.

        Raises:
            ClientLostError: the client ended by itself; the recorder knows of all that had gone out as failed.
            UserError: a request cannot be read, or what became of one not be recorded.
        """
        reading = asyncio.create_task(self._read())
        feeding = asyncio.create_task(self._feed(requests, drain_s))
        stopping = asyncio.create_task(stop.wait())
        tasks = (feeding, stopping, reading)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
                await asyncio.wait((stopping, reading), return_when=asyncio.FIRST_COMPLETED)
            whole = reading.done()
            if not whole:
                self._say(False)
                await asyncio.wait((reading,), timeout=STOP_S)
            if reading.done():
                reading.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if whole and self._recorder.open:
            self._recorder.lose(CLIENT_GONE, time.monotonic() - self._order.start_s)
            raise ClientLostError
        return whole

    async def _feed(self, requests: Iterator[Request], drain_s: float) -> None:
        assert self._process is not None and self._process.stdin is not None
        last_s = 0.0
        for request in requests:
            if request.arrival_s - last_s > QUIET_S:
                wait_s = self._order.start_s + request.arrival_s - time.monotonic()
                self._tell(f"the next request comes in {wait_s:.0f} s, at second {request.arrival_s:.0f} of the run")
            last_s = request.arrival_s
            await self._until(request.arrival_s - AHEAD_S)
            timed = Timed(*request)
            self._recorder.plan(timed)
            self._say(timed)
            if request.request_id % 64 == 0:
                with contextlib.suppress(*GONE):
                    await self._process.stdin.drain()
        self._recorder.planned_all = True
        self._say(None)
        await self._until(last_s + drain_s)
        self._give_up = f"it had not ended {drain_s:g} s after the last arrival"
        self._say(False)

    async def _until(self, time_s: float) -> None:
        wait_s = self._order.start_s + time_s - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _read(self) -> None:
        """Take results until the client has told all and ended."""
        assert self._process is not None and self._process.stdout is not None
        decode = msgspec.json.Decoder(Result).decode
        async for line in self._process.stdout:
            self._recorder.take(decode(line), self._give_up)

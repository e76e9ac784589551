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
SILENT_S = 15.0
"""A client that has told nothing for so long, while it does so every second, is given up."""
CLIENT_GONE = "the load client ended"
GONE = (ConnectionError, RuntimeError)
"""What writing to a client that has ended raises; the second in uvloop. That it has ended is seen in what it says."""


class ClientLostError(Exception):
    """The load client ended, or was stopped, before all requests had ended."""


class Replay:
    """One client process; an asynchronous context manager.

    Args:
        order: what the client is told.
        recorder: is told of every request and its end.
        tell: tells a person, in a line, that nothing will happen for a while.
        silent_s: a client from which nothing is heard for so long is given up.
    """

    def __init__(
        self, order: Order, recorder: LiveRecorder, tell: Callable[[str], None], silent_s: float = SILENT_S
    ) -> None:
        self._order = order
        self._recorder = recorder
        self._process: Process | None = None
        self._give_up = ""
        self._tell = tell
        self._silent_s = silent_s
        self._heard_s = time.monotonic()

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
            ClientLostError: the client ended by itself, or told nothing any more; the recorder knows of all that had
                gone out as failed.
            UserError: a request cannot be read, or what became of one not be recorded.
        """
        reading = asyncio.create_task(self._read())
        feeding = asyncio.create_task(self._feed(requests, drain_s))
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch())
        tasks = (feeding, stopping, reading, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
                await asyncio.wait((stopping, reading, watching), return_when=asyncio.FIRST_COMPLETED)
            gone = CLIENT_GONE if reading.done() else f"the load client told nothing for {self._silent_s:g} s"
            whole = reading.done() or watching.done()
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
            self._recorder.lose(gone, time.monotonic() - self._order.start_s)
            raise ClientLostError(gone)
        return whole

    async def _watch(self) -> None:
        """Wait until the client has told nothing for too long."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(self._silent_s / 8)
            now_s = time.monotonic()
            if now_s - before_s > self._silent_s / 4:  # it was this process that stood still
                self._heard_s = now_s
            if now_s > self._heard_s + self._silent_s:
                return

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
            self._heard_s = time.monotonic()
            self._recorder.take(decode(line), self._give_up)

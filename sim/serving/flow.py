"""The way of a request through a cluster, the same in both engines: arrival, first token, end."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from voltana.dispatch import Dispatcher
from voltana.sim.serving.job import Job
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.spec import ClusterSpec, info


class RequestFlow(ABC):
    """What an engine does with requests between its instances; the engine sets these attributes."""

    _spec: ClusterSpec
    _recorder: Recorder
    _to_prefill: Dispatcher
    _to_decode: Dispatcher
    _legs = 0

    def _arrive(self, job: Job) -> None:
        """A request comes in; one that no cache could hold fails."""
        if self._spec.predicts_lengths:
            job.expected_tokens = self._spec.expected_tokens(job.request)
        self._recorder.arrived(job)
        if not self._spec.decode_limits.serve(job.request.input_tokens):
            self._fail(job)
            return
        self._when_served(partial(self._start, job))

    def _start(self, job: Job) -> None:
        """The front end sends a request to a prefill instance."""
        job.prefill = self._to_prefill.dispatch(info(job))
        if self._to_decode.at_arrival:
            job.decode = self._to_decode.dispatch(info(job))
        self._queue(job, job.prefill)

    def _prefilled(self, job: Job) -> None:
        """The prompt of a request is computed."""
        self._when_served(partial(self._go_on, job))

    def _go_on(self, job: Job) -> None:
        """The front end sends a request to a decode instance, whose tokens, the first one included, the client gets."""
        assert job.prefill is not None
        if job.decode is None:
            job.decode = self._to_decode.dispatch(info(job))
        self._hand_over(job, job.prefill, job.decode)

    def _when_served(self, then: Callable[[], None]) -> None:
        """Have something done when the front end has come to it."""
        if self._spec.front_end.leg_s:
            self._queue_at_front_end(then)
        else:
            then()

    def _next_leg_s(self) -> float:
        """What the leg that now begins takes."""
        self._legs += 1
        return self._spec.front_end.duration_s(self._legs)

    def _fail(self, job: Job) -> None:
        job.failed = True
        self._end(job)

    def _end(self, job: Job) -> None:
        self._recorder.ended(job)
        self._finish_if_done()

    @abstractmethod
    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        """Have something done after its turn at the front end, which takes `_next_leg_s`."""

    @abstractmethod
    def _queue(self, job: Job, target: int) -> None:
        """Give a job to a prefill instance."""

    @abstractmethod
    def _hand_over(self, job: Job, source: int, target: int) -> None:
        """Move the KV cache of a job from its prefill to its decode instance."""

    @abstractmethod
    def _finish_if_done(self) -> None:
        """End the run when all requests have arrived and ended."""


@contextmanager
def closing_if_interrupted(close: Callable[[], None], interrupt: Callable[[], None]) -> Iterator[None]:
    """Close at the end and when interrupted, but not after an error: what is half done has nothing to close.

    Args:
        close: ends what is under way; the simulation stands between two events.
        interrupt: has KeyboardInterrupt raised between two events; called by a signal handler.
    """
    try:
        with _between_events(interrupt):
            yield
    except KeyboardInterrupt:
        close()
        raise
    close()


@contextmanager
def _between_events(interrupt: Callable[[], None]) -> Iterator[None]:
    """Put off the KeyboardInterrupt of a Ctrl-C, which could strike in the middle of any line; a second one is not."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    put_off = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal put_off
        try:
            before(number, frame)
        except KeyboardInterrupt:
            if put_off:
                raise
            put_off = True
            interrupt()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

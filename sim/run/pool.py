"""Processes for runs side by side, which end at Ctrl-C without a word."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from multiprocessing.context import BaseContext

from voltana.sim.run.worker import begin


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, for `voltana.sim.run.worker.work`; what goes wrong within ends the runs under way.

    Submit to it within `interrupts_blocked`: processes are started when they are first needed, and Ctrl-C must not
    strike them half made (`voltana.sim.run.worker.begin`).
    """
    with ProcessPoolExecutor(workers, _processes(), initializer=begin) as pool:
        try:
            yield pool
        except BaseException:
            for child in active_children():  # those that Ctrl-C did not reach itself
                if child.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGINT)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _processes() -> BaseContext:
    """Where processes come from: forked, one after another, from one that has imported what a run needs."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["voltana.sim.run.simulate"])
    return context


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold back Ctrl-C in this thread and in the processes that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

"""The SGLang plugin: publishes a load snapshot just before every iteration of a stock server.

SGLang finds it by the entry point `voltana_telemetry` of the group `sglang.srt.plugins`, in every one of its
processes. It does nothing unless VOLTANA_TELEMETRY names an endpoint:

    VOLTANA_TELEMETRY=ipc:///run/voltana/decode-0.sock VOLTANA_INSTANCE=decode-0 python -m sglang.launch_server ...

Then three methods of the scheduler get a hook that runs before them: `run_batch` (an iteration is about to start),
`on_idle` (there is none) and `handle_generate_request` (a request came in). Only the scheduler of the first TP and PP
rank publishes. A hook reads attributes and sends one message without waiting; whatever goes wrong in it is counted
and logged once, and the server goes on. `USES` lists every name of SGLang that is read, for the contract test.

Nothing is published, and the log says so, by a release of SGLang that is not tested (`sglang_versions.TESTED`) and by
servers with data parallelism: each of their ranks has a scheduler, and they would all publish as one instance.

Requests that wait for the other half of a P/D pair, not for this GPU, are not queued and have not arrived yet: on a
prefill server those being bootstrapped, on a decode server those without KV room of their own or with KV on its way.
They count for the router as sent, as in the simulator.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from voltana.live.telemetry.publisher import Publisher
from voltana.live.telemetry.sglang_versions import ANY, untested
from voltana.state import Phase

logger = logging.getLogger(__name__)

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"

USES: dict[str, tuple[str, ...]] = {
    SCHEDULER: (
        "run_batch",
        "on_idle",
        "handle_generate_request",
        "disaggregation_mode",
        "max_total_num_tokens",
        "server_args",
        "waiting_queue",
        "disagg_prefill_bootstrap_queue",
        "disagg_decode_prealloc_queue",
        "disagg_decode_transfer_queue",
    ),
    "sglang.srt.managers.schedule_batch.ScheduleBatch": ("reqs", "forward_mode", "seq_lens_cpu", "extend_num_tokens"),
    "sglang.srt.managers.schedule_batch.Req": ("seqlen", "time_stats"),
    "sglang.srt.managers.io_struct.TokenizedGenerateReqInput": ("rid", "input_ids"),
    "sglang.srt.model_executor.forward_batch_info.ForwardMode": ("is_prebuilt", "is_idle", "is_decode"),
    "sglang.srt.observability.req_time_stats.SchedulerReqTimeStats": (
        "prefill_bootstrap_queue_entry_time",
        "wait_queue_entry_time",
    ),
    "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue": ("queue",),
    "sglang.srt.disaggregation.decode.DecodePreallocQueue": ("queue", "retracted_queue"),
    "sglang.srt.disaggregation.decode.DecodeTransferQueue": ("queue",),
    "sglang.srt.disaggregation.decode.DecodeRequest": ("seqlen", "waiting_for_input"),
}
"""Classes of SGLang and their attributes that are hooked or read here."""

HEALTH_CHECK = "HEALTH_CHECK"
"""Start of the ids of the requests that SGLang sends to itself."""

HEARTBEAT_S = 1.0
"""While idle, publish this often."""

REPORT_EVERY = 10_000
"""Iterations between two lines in the log on what the hook costs."""

EXACT = 32
"""Requests of a queue that are looked at one by one; what a longer queue holds is scaled up from these."""


def activate() -> None:
    """What SGLang calls: register the hooks, if VOLTANA_TELEMETRY says where to publish."""
    endpoint = os.environ.get("VOLTANA_TELEMETRY")
    if not endpoint:
        return
    wrong = untested(importlib.metadata.version("sglang"))
    if wrong is not None and os.environ.get(ANY) != "1":
        logger.error("telemetry: nothing is published: %s (%s=1 tries others)", wrong, ANY)
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # type: ignore[import-not-found]

    tap = SchedulerTap(endpoint, os.environ.get("VOLTANA_INSTANCE", ""))
    HookRegistry.register(f"{SCHEDULER}.run_batch", tap.before_batch, HookType.BEFORE)
    HookRegistry.register(f"{SCHEDULER}.on_idle", tap.before_idle, HookType.BEFORE)
    HookRegistry.register(f"{SCHEDULER}.handle_generate_request", tap.before_request, HookType.BEFORE)


class SchedulerTap:
    """The hooks and what they remember.

    Args:
        endpoint: what to publish on.
        instance: name of the server; empty: its phase.
    """

    def __init__(self, endpoint: str, instance: str) -> None:
        self._endpoint = endpoint
        self._instance = instance
        self._publisher: Publisher | None = None
        self._off = False
        self._received = 0
        self._received_tokens = 0
        self._iterations = 0
        self._busy_s = 0.0
        self._launched_s: float | None = None
        self._ended_s = -math.inf
        self._heartbeat_s = -math.inf
        self.calls = 0
        """Iterations that were published."""
        self.own_s = 0.0
        """Time that took, in all."""
        self.errors = 0

    def before_batch(self, scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
        """An iteration is about to start."""
        if self._off:
            return
        start_s = time.perf_counter()
        try:
            if not self._is_iteration(batch):
                return
            self._end_iteration()
            self._launched_s = time.monotonic()
            self._publish_batch(scheduler, batch)
        except Exception as error:
            self._failed(error)
        self._took(time.perf_counter() - start_s)

    def before_idle(self, scheduler: Any, *_: Any, **__: Any) -> None:
        """There is no batch to run. SGLang calls this over and over; one message tells it, then one a second."""
        if self._off or (self._launched_s is None and time.monotonic() < self._heartbeat_s + HEARTBEAT_S):
            return
        try:
            self._end_iteration()
            self._heartbeat_s = time.monotonic()
            self._publish(scheduler, 0, 0, 0.0)
        except Exception as error:
            self._failed(error)

    def before_request(self, _: Any, request: Any, *__: Any, **___: Any) -> None:
        """A request came in."""
        if self._off:
            return
        try:
            if not str(request.rid).startswith(HEALTH_CHECK):
                self._received += 1
                self._received_tokens += len(request.input_ids or ())
        except Exception as error:
            self._failed(error)

    def _took(self, own_s: float) -> None:
        self.calls += 1
        self.own_s += own_s
        if self.calls % REPORT_EVERY == 0:
            mean_us = self.own_s / self.calls * 1e6
            logger.info("telemetry: %d iterations, %.1f us each, %d errors", self.calls, mean_us, self.errors)

    @staticmethod
    def _is_iteration(batch: Any) -> bool:
        mode = batch.forward_mode
        return not (mode.is_prebuilt() or mode.is_idle())

    def _end_iteration(self) -> None:
        """From launch to launch: with overlap scheduling a launch returns before its iteration ran."""
        if self._launched_s is not None:
            self._ended_s = time.monotonic()
            self._iterations += 1
            self._busy_s += self._ended_s - self._launched_s
            self._launched_s = None

    def _publish_batch(self, scheduler: Any, batch: Any) -> None:
        if batch.forward_mode.is_decode():
            self._publish(scheduler, len(batch.reqs), context_tokens(batch), 0.0)
        else:
            self._publish(scheduler, len(batch.reqs), int(batch.extend_num_tokens), longest_wait_s(batch.reqs))

    def _publish(self, scheduler: Any, batch_size: int, batch_tokens: int, wait_s: float) -> None:
        publisher = self._publisher or self._open(scheduler)
        if publisher is None:
            return
        ready, pending = queues(scheduler)
        publisher.publish(
            batch_size,
            batch_tokens,
            ready.requests,
            ready.tokens,
            wait_s,
            0.0 if batch_size else time.monotonic() - self._ended_s,
            max(0, self._received - pending.requests),
            max(0, self._received_tokens - pending.tokens),
            self._iterations,
            self._busy_s,
        )

    def _open(self, scheduler: Any) -> Publisher | None:
        """Only now is it known that this process is a scheduler, and of which rank."""
        from sglang.srt.runtime_context import get_parallel  # type: ignore[import-not-found]

        parallel, ranks = get_parallel(), data_parallel_ranks(scheduler.server_args)
        if ranks > 1 and not parallel.tp_rank:
            found = f"found {ranks} data-parallel ranks, allowed: 1"
            logger.error("telemetry: nothing is published: %s; run a server for each instead", found)
        if parallel.tp_rank or parallel.pp_rank or ranks > 1:
            self._off = True
            return None
        phase: Phase = "prefill" if scheduler.disaggregation_mode.value == "prefill" else "decode"
        name = self._instance or phase
        self._publisher = Publisher(self._endpoint, name, phase, int(scheduler.max_total_num_tokens))
        logger.info("telemetry of %s on %s", name, self._endpoint)
        return self._publisher

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        if self.errors == 1:
            logger.error("telemetry failed, the server goes on without: %s: %s", type(error).__name__, error)


class Queue(NamedTuple):
    """Requests and their tokens."""

    requests: int = 0
    tokens: int = 0

    def plus(self, other: Queue) -> Queue:
        """Both together."""
        return Queue(self.requests + other.requests, self.tokens + other.tokens)


def data_parallel_ranks(server_args: Any) -> int:
    """How many schedulers of a server have requests of their own: replicas times attention groups.

    Before 0.5.22 the latter are counted as the former, and have no name of their own.
    """
    return int(server_args.dp_size) * int(getattr(server_args, "attn_dp_size", 1))


def context_tokens(batch: Any) -> int:
    """Tokens that a decode batch attends to.

    With overlapped speculative decoding the lengths may be on the GPU alone, to be known after the iteration before;
    then they are those of the requests, which that one has not reached yet.
    """
    if batch.seq_lens_cpu is None:
        return sum(request.seqlen for request in batch.reqs)
    return int(batch.seq_lens_cpu.sum())


def queues(scheduler: Any) -> tuple[Queue, Queue]:
    """Requests that could run now, and those that wait for the other half of their pair."""
    mode, ready = scheduler.disaggregation_mode.value, weigh(scheduler.waiting_queue)
    if mode == "prefill":
        return ready, weigh(scheduler.disagg_prefill_bootstrap_queue.queue)
    if mode != "decode":
        return ready, Queue()
    prealloc = scheduler.disagg_decode_prealloc_queue
    all_prealloc = weigh(prealloc.queue)
    starved = weigh(prealloc.queue, lambda each: bool(each.waiting_for_input))
    elsewhere = Queue(all_prealloc.requests - starved.requests, all_prealloc.tokens - starved.tokens)
    ready = ready.plus(weigh(prealloc.retracted_queue)).plus(starved)
    return ready, elsewhere.plus(weigh(scheduler.disagg_decode_transfer_queue.queue))


def weigh(requests: Sequence[Any], counts: Callable[[Any], bool] | None = None) -> Queue:
    """A queue, or those of its requests that count."""
    length = len(requests)
    if not length:
        return Queue()
    tokens = [each.seqlen for each in islice(requests, EXACT) if counts is None or counts(each)]
    if length <= EXACT:
        return Queue(len(tokens), sum(tokens))
    return Queue(len(tokens) * length // EXACT, sum(tokens) * length // EXACT)


def longest_wait_s(requests: Sequence[Any]) -> float:
    """Longest time since a request of the batch reached this server; batches are formed in that order, or nearly."""
    now_s = time.perf_counter()
    longest = 0.0
    for request in islice(requests, EXACT):
        stats = request.time_stats
        entered_s = stats.prefill_bootstrap_queue_entry_time or stats.wait_queue_entry_time
        if entered_s:
            longest = max(longest, now_s - entered_s)
    return longest

"""Telemetry without a hook: SGLang's forward-pass metrics, read as our messages.

A server started with ``--enable-forward-pass-metrics --forward-pass-metrics-ipc-name ipc://PATH`` publishes them on
``ipc://PATH.0`` after every iteration, and each second while it idles. The plugin is held against them.

They know less than the plugin. A message comes after its iteration and not before, what arrived is not counted (so a
`Dispatcher` cannot tell what is on its way), nobody knows how long a prompt has waited, and the decode requests they
call queued are those whose KV has not come, which are not waiting for the GPU and are left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import msgspec

from voltana.live.telemetry.message import VERSION, Message, WrongMessageError
from voltana.state import Phase

FORWARD_PASS_VERSION = 1
"""The version of SGLang's messages that is understood here."""


class Scheduled(msgspec.Struct, frozen=True, gc=False):
    """SGLang's `ScheduledRequestMetrics`, as far as it is used."""

    num_prefill_requests: int
    sum_prefill_tokens: int
    num_decode_requests: int
    sum_decode_kv_tokens: int


class Queued(msgspec.Struct, frozen=True, gc=False):
    """SGLang's `QueuedRequestMetrics`, as far as it is used."""

    num_prefill_requests: int
    sum_prefill_tokens: int


class ForwardPass(msgspec.Struct, frozen=True, gc=False):
    """SGLang's `ForwardPassMetrics`, as far as it is used."""

    version: int
    counter_id: int
    wall_time: float
    """Of the iteration on the GPU, s; 0 in the message of an idle server."""
    scheduled_requests: Scheduled
    queued_requests: Queued


_decode = msgspec.msgpack.Decoder(ForwardPass).decode


class ForwardPassDecoder:
    """Makes our messages of one server's forward-pass metrics; for `Subscriber.decode`.

    Args:
        instance: name of the server in the cluster.
        phase: what it does.
    """

    def __init__(self, instance: str, phase: Phase) -> None:
        self._instance = instance
        self._phase: Phase = phase
        self._iterations = 0
        self._busy_s = 0.0
        self._ended_s = -math.inf

    def __call__(self, frames: Sequence[bytes]) -> Message:
        """The message in a topic, sequence and payload frame.

        Raises:
            WrongMessageError: not forward-pass metrics, or of another version.
        """
        try:
            metrics = _decode(frames[-1])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WrongMessageError(f"not SGLang's forward-pass metrics ({error})") from error
        if metrics.version != FORWARD_PASS_VERSION:
            raise WrongMessageError(
                f"forward-pass metrics of version {metrics.version}, understood is {FORWARD_PASS_VERSION}"
            )
        return self._message(metrics)

    def _message(self, metrics: ForwardPass) -> Message:
        now_s = time.monotonic()
        scheduled, prefill = metrics.scheduled_requests, self._phase == "prefill"
        batch = scheduled.num_prefill_requests if prefill else scheduled.num_decode_requests
        if metrics.wall_time > 0:
            self._iterations += 1
            self._busy_s += metrics.wall_time
            self._ended_s = now_s
        return Message(
            VERSION,
            self._instance,
            self._phase,
            metrics.counter_id,
            now_s,
            time.time(),
            max_kv_tokens=0,
            batch_size=batch,
            batch_tokens=scheduled.sum_prefill_tokens if prefill else scheduled.sum_decode_kv_tokens,
            queued=metrics.queued_requests.num_prefill_requests if prefill else 0,
            queued_tokens=metrics.queued_requests.sum_prefill_tokens if prefill else 0,
            idle_s=0.0 if batch else now_s - self._ended_s,
            iterations=self._iterations,
            busy_s=self._busy_s,
        )

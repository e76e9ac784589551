"""What the SGLang hook costs an iteration: ``python -m tests.bench.telemetry``.

The hook of `voltana.live.telemetry.sglang_plugin` runs on stand-ins that have the attributes of SGLang's scheduler and
cost as much to read (properties that call `len`, NumPy for a CPU tensor), with the real publisher and a subscriber that
listens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from voltana.live.telemetry.publisher import Publisher
from voltana.live.telemetry.sglang_plugin import SchedulerTap
from voltana.live.telemetry.subscriber import Subscriber
from voltana.state import Phase

LIMIT_US = 50.0


class Request:
    """As much of SGLang's `Req` as the hook reads."""

    def __init__(self, tokens: int) -> None:
        self.origin_input_ids = array("q", bytes(8 * tokens))
        self.output_ids = array("q", bytes(8 * 64))
        now_s = time.perf_counter()
        self.time_stats = SimpleNamespace(prefill_bootstrap_queue_entry_time=now_s, wait_queue_entry_time=now_s)
        self.waiting_for_input = False

    @property
    def seqlen(self) -> int:
        """Tokens so far."""
        return len(self.origin_input_ids) + len(self.output_ids)


class Mode:
    """SGLang's `ForwardMode`."""

    def __init__(self, decode: bool) -> None:
        self._decode = decode

    def is_prebuilt(self) -> bool:
        """Whether nothing is computed."""
        return False

    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return False

    def is_decode(self) -> bool:
        """Whether it is a decode batch."""
        return self._decode


def scheduler(phase: Phase, queued: int) -> Any:
    """A scheduler with so many requests in every queue."""
    requests = [Request(400) for _ in range(queued)]
    return SimpleNamespace(
        disaggregation_mode=SimpleNamespace(value=phase),
        max_total_num_tokens=400_000,
        server_args=SimpleNamespace(dp_size=1),
        waiting_queue=requests,
        disagg_prefill_bootstrap_queue=SimpleNamespace(queue=requests),
        disagg_decode_prealloc_queue=SimpleNamespace(queue=requests, retracted_queue=[]),
        disagg_decode_transfer_queue=SimpleNamespace(queue=requests),
    )


class Cost(NamedTuple):
    """Of the hook, us an iteration."""

    cpu: float
    """Mean CPU time, which other work on the machine hardly changes."""
    p50: float
    """Median wall time."""
    p99: float


def measure(phase: Phase, batch_size: int, queued: int, iterations: int) -> Cost:
    """What the hook costs."""
    with tempfile.TemporaryDirectory() as folder, Subscriber() as subscriber:
        endpoint = f"ipc://{Path(folder) / 'telemetry.sock'}"
        tap = SchedulerTap(endpoint, phase)
        tap._publisher = publisher = Publisher(endpoint, phase, phase, 400_000)
        subscriber.connect(endpoint)
        batch = SimpleNamespace(
            forward_mode=Mode(phase == "decode"),
            reqs=[Request(400) for _ in range(batch_size)],
            seq_lens_cpu=np.full(batch_size, 500),
            extend_num_tokens=400 * batch_size,
        )
        source, took_us, cpu_s = scheduler(phase, queued), [], 0.0
        for _ in range(iterations):
            before_s, before_cpu_s = tap.own_s, time.thread_time()
            tap.before_batch(source, batch)
            cpu_s += time.thread_time() - before_cpu_s
            took_us.append((tap.own_s - before_s) * 1e6)
            if len(took_us) % 16 == 0:
                subscriber.receive()
        publisher.close()
        if tap.errors:
            raise RuntimeError("the hook failed")
    took_us.sort()
    return Cost(cpu_s / iterations * 1e6, took_us[iterations // 2], took_us[int(0.99 * iterations)])


def main() -> None:
    """Print the cost for small and large batches and queues."""
    parser = argparse.ArgumentParser(description="Time that the SGLang hook takes per iteration.")
    parser.add_argument("--iterations", type=int, default=20_000)
    iterations = max(100, parser.parse_args().iterations)
    print(f"{'phase':8} {'batch':>6} {'queues':>7} {'CPU us':>8} {'p50 us':>8} {'p99 us':>8}   limit {LIMIT_US:.0f} us")
    cases: tuple[tuple[Phase, int, int], ...] = (
        ("prefill", 4, 0),
        ("prefill", 32, 20),
        ("prefill", 256, 5000),
        ("decode", 8, 0),
        ("decode", 128, 20),
        ("decode", 512, 100),
    )
    for phase, batch_size, queued in cases:
        cost = measure(phase, batch_size, queued, iterations)
        print(f"{phase:8} {batch_size:6} {queued:7} {cost.cpu:8.1f} {cost.p50:8.1f} {cost.p99:8.1f}")


if __name__ == "__main__":
    main()

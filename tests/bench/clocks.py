"""How long a clock command takes from client to driver and back: `python -m tests.bench.clocks`.

An owner of simulated GPUs runs as a process of its own. Commands go to instances in turn, at a rate that a driver can
follow, while two more clients read all meters ten times a second. "path" is the round trip without the driver's own
time and that until the clock was read: client, socket, owner, waiting for other calls, and the acknowledgement back.
"call" is what `set_clock` takes of the controller's time.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from voltana.live.clocks.client import ClockClient
from voltana.live.clocks.control import SimulatedControl
from voltana.live.clocks.protocol import Applied, Event

QUANTILES = (0.5, 0.9, 0.99, 1.0)


class _Stopwatch:
    """When commands were sent, and what came back when."""

    def __init__(self) -> None:
        self.sent_s: dict[int, float] = {}
        self.done: dict[int, tuple[float, Applied]] = {}

    def on_event(self, event: Event) -> None:
        """Note an acknowledgement."""
        if isinstance(event, Applied) and event.id is not None:
            self.done[event.id] = (time.monotonic(), event)

    def path_ms(self) -> list[float]:
        """Round trips without the driver's time and that until the clock was read."""
        own_ms = {number: event.driver_ms + event.settle_ms for number, (_, event) in self.done.items()}
        return [(at_s - self.sent_s[number]) * 1e3 - own_ms[number] for number, (at_s, _) in self.done.items()]


def measure(control: SimulatedControl, groups: Sequence[Sequence[int]], commands: int, rate: float) -> dict[str, Any]:
    """Send commands to groups of GPUs in turn; returns milliseconds: "call" and "path"."""
    watch = _Stopwatch()
    gpus = [gpu for group in groups for gpu in group]
    calls = []
    with control.open(gpus, "bench", watch.on_event) as clocks, _readers(clocks.path, 2):
        for index, group in enumerate(groups):
            clocks.own(str(index), group)
        start_s = time.monotonic()
        for number in range(commands):
            time.sleep(max(0.0, start_s + number / rate - time.monotonic()))
            before_s = time.monotonic()
            mhz = 1005 + 15 * (number // len(groups) % 2)
            command = clocks.set_clock(str(number % len(groups)), mhz)
            calls.append((time.monotonic() - before_s) * 1e3)
            if command is not None:
                watch.sent_s[command] = before_s
        until_s = time.monotonic() + 5.0
        while len(watch.done) < len(watch.sent_s) and time.monotonic() < until_s:
            time.sleep(0.01)
    return {"call": calls, "path": watch.path_ms()}


@contextmanager
def _readers(path: Path, count: int) -> Iterator[None]:
    stop = threading.Event()

    def read(clocks: ClockClient) -> None:
        while not stop.wait(0.1):
            clocks.read()

    with ExitStack() as stack:
        clients = [stack.enter_context(ClockClient(path, "bench reader")) for _ in range(count)]
        threads = [threading.Thread(target=read, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _control(block_s: float) -> SimulatedControl:
    with initialize_config_module("voltana.conf", version_base="1.3"):
        config = compose(overrides=["+gpu=a100_sxm4_80g", "+model=llama31_8b", "+serving=sglang"])
    values: Any = OmegaConf.to_container(config, resolve=False)
    return SimulatedControl(
        gpu=values["gpu"],
        model=values["model"],
        engine=values["serving"]["engine"],
        block_s=block_s,
        settle_s=0.0,
        changes_per_s=1000,
    )


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clocks", description="Time clock commands.")
    parser.add_argument("--commands", type=int, default=1000)
    options = parser.parse_args(arguments)
    four, two_pairs = [[0], [1], [2], [3]], [[0, 1], [2, 3]]
    print(f"{options.commands} commands each; milliseconds: p50, p90, p99, longest")
    print(f"{'instances':<14}{'driver call':<13}{'per s':<7}{'path':<32}call")
    for block_ms, groups, rate in ((0, four, 200), (3, four, 100), (3, two_pairs, 100)):
        result = measure(_control(block_ms / 1e3), groups, options.commands, rate)
        name = f"{len(groups)} x {len(groups[0])} GPU"
        columns = (" ".join(f"{_quantile(result[key], q):7.3f}" for q in QUANTILES) for key in ("path", "call"))
        print(f"{name:<14}{f'{block_ms} ms':<13}{rate:<7}{' '.join(columns)}")


if __name__ == "__main__":
    main()

"""Emulated servers at full rate: ``python -m tests.bench.emulated --config PLANT.json``.

Starts prefill and decode servers, sends requests at Poisson times to a pair of them each, as a router would, reads all
streams, and drives the clocks by EcoFreq-like decisions from telemetry. Prints what was reached: tokens per second, how
far the servers fell behind their own time, the CPU they took, the lag of the client, and the controller's latency.
There is no router between, so this is the limit of servers and client.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from voltana.errors import UserError
from voltana.live.controller import Controller
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.http import ask
from voltana.live.servers import Endpoint
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.telemetry.subscriber import Subscriber
from voltana.state import Decision, LoadSnapshot


class Alternating:
    """Changes the clock at every iteration, so that every decision is a command: the most a controller can ask."""

    def __init__(self, *clocks_mhz: int) -> None:
        self._clocks_mhz = clocks_mhz

    def decide(self, load: LoadSnapshot) -> Decision:
        """Answer with another clock than the present one."""
        return Decision(next(clock for clock in self._clocks_mhz if clock != load.clock_mhz))


@dataclass
class Tally:
    """What the client saw."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    chunks: int = 0
    ttft_s: list[float] = field(default_factory=list)
    mean_itl_s: list[float] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    """Time in which requests were sent; chunks and CPU below are of this time alone."""
    load_chunks: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)


class Stream(asyncio.Protocol):
    """One request to one server; counts events without reading them."""

    def __init__(self, body: bytes, tally: Tally | None, ended: asyncio.Future[None]) -> None:
        self._body = body
        self._tally = tally
        self._ended = ended
        self._sent_s = self._first_s = self._last_s = 0.0
        self._events = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._sent_s = time.monotonic()
        cast(asyncio.Transport, transport).write(self._body)

    def data_received(self, data: bytes) -> None:
        """Count the chunks."""
        events = data.count(b"data: {")
        if events:
            self._last_s = time.monotonic()
            self._first_s = self._first_s or self._last_s
            self._events += events
            if self._tally is not None:
                self._tally.chunks += events
        self._tail = (self._tail + data)[-32:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closes after the answer."""
        if not self._ended.done():
            self._ended.set_result(None)
        if self._tally is None:
            return
        if b"[DONE]" not in self._tail:
            self._tally.failed += 1
            return
        self._tally.done += 1
        self._tally.ttft_s.append(self._first_s - self._sent_s)
        if self._events > 1:
            self._tally.mean_itl_s.append((self._last_s - self._first_s) / (self._events - 1))


def request(path: str, prefill: Endpoint, prompt_tokens: int, output_tokens: int, room: int) -> bytes:
    """The bytes of a streamed request, the same for both servers."""
    body = {
        "stream": True,
        "bootstrap_host": prefill.host,
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": room,
    }
    prompt = [room % 1000] * prompt_tokens
    if path == "/generate":
        body |= {"input_ids": prompt, "sampling_params": {"max_new_tokens": output_tokens, "ignore_eos": True}}
    else:
        body |= {"model": "emulated", "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True}
    payload = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nhost: emulated\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


async def load(cluster: EmulatedCluster, options: argparse.Namespace) -> Tally:
    """Send requests for the time asked, and wait for their ends."""
    loop, draw, tally = asyncio.get_running_loop(), random.Random(options.seed), Tally()
    prefill, decode = cluster.of("prefill"), cluster.of("decode")
    waits: set[asyncio.Future[None]] = set()
    start_s, due_s, before = time.monotonic(), 0.0, _cpu(cluster)
    while due_s < options.seconds:
        await asyncio.sleep(max(0.0, start_s + due_s - time.monotonic()))
        tally.lag_s.append(time.monotonic() - start_s - due_s)
        tally.sent += 1
        first, second = prefill[tally.sent % len(prefill)], decode[tally.sent // 2 % len(decode)]
        prompt, output = _length(draw, options.prompt_tokens), _length(draw, options.output_tokens)
        body = request(options.path, first, prompt, output, tally.sent)
        for endpoint, counted in ((first, None), (second, tally)):
            ended: asyncio.Future[None] = loop.create_future()
            waits.add(ended)
            ended.add_done_callback(waits.discard)
            loop.create_task(_open(endpoint, body, counted, ended))
        due_s += draw.expovariate(options.rps)
    tally.wall_s, tally.load_chunks = time.monotonic() - start_s, tally.chunks
    tally.cpu_s = {name: spent - before[name] for name, spent in _cpu(cluster).items()}
    if waits:
        await asyncio.wait(set(waits), timeout=60)
    return tally


async def _open(endpoint: Endpoint, body: bytes, tally: Tally | None, ended: asyncio.Future[None]) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: Stream(body, tally, ended), endpoint.host, endpoint.port)


def _length(draw: random.Random, mean: int) -> int:
    """A length with a long tail."""
    return max(1, min(3000, round(draw.lognormvariate(0.0, 0.9) * mean / 1.5)))


def _cpu(cluster: EmulatedCluster) -> dict[str, float]:
    """CPU time of every server and of this process, the client and controller, s."""
    pids = {"client and controller": os.getpid()} | {each.name: each.pid for each in cluster.endpoints.values()}
    spent = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        spent[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


async def run(options: argparse.Namespace) -> None:
    """Run the benchmark and print its results."""
    plant = json.loads(options.config.read_text())
    settings = {"stream_interval": options.stream_interval, "clock_mhz": options.clock_mhz}
    async with EmulatedCluster(options.prefill, options.decode, plant, settings) as cluster:
        endpoints = list(cluster.endpoints.values())
        levels = (options.clock_mhz, options.clock_mhz - 15)
        gpus = EmulatedGpus(list(cluster.endpoints), levels)
        await gpus.attach(endpoints)
        with Subscriber(lambda telemetry: controller.on_telemetry(telemetry)) as subscriber:
            policies = {each.name: Alternating(*levels) for each in endpoints}
            controller = Controller(policies, gpus, subscriber)
            for endpoint in endpoints:
                subscriber.connect(endpoint.telemetry)
            subscriber.attach(asyncio.get_running_loop())
            controller.start()
            gc.freeze()
            tally = await load(cluster, options)
            controller.stop()
            show(tally)
            for each in endpoints:
                energy = json.loads((await ask(each.url, "/emulated/energy")).body)
                work = f"{energy['iterations']} iterations, {energy['energy_j']:.0f} J"
                print(f"{each.name}: {work}, behind by {energy['lag_ms']['max']} ms at most")
            print(f"controller: telemetry to command, ms: {controller.decision_latency.summary_ms()}")
            print(f"            server to controller, ms: {subscriber.transport_latency.summary_ms()}")
            print(f"            {controller.clock_changes} commands, {subscriber.lost} messages lost")
            await gpus.close()


def show(tally: Tally) -> None:
    """Print what the client saw."""
    rate = tally.load_chunks / tally.wall_s
    print(f"{tally.sent} requests in {tally.wall_s:.1f} s, {tally.done} complete, {tally.failed} failed")
    print(f"{rate:.0f} chunks per second; CPU, share of a core:")
    for name, spent_s in tally.cpu_s.items():
        print(f"  {name}: {spent_s / tally.wall_s:.1%}")
    for name, values in (("TTFT", tally.ttft_s), ("mean ITL", tally.mean_itl_s), ("client lag", tally.lag_s)):
        ordered = sorted(values) or [0.0]
        p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
        print(f"{name}: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="What emulated servers sustain on this machine.")
    parser.add_argument("--config", type=Path, required=True, help="JSON with the sections gpu, model and engine")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    parser.add_argument("--rps", type=float, default=75.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--prompt-tokens", type=int, default=230, help="mean")
    parser.add_argument("--output-tokens", type=int, default=200, help="mean")
    parser.add_argument("--stream-interval", type=int, default=1, help="tokens per chunk")
    parser.add_argument("--clock-mhz", type=int, default=1410)
    parser.add_argument("--path", choices=("/generate", "/v1/completions"), default="/v1/completions")
    parser.add_argument("--seed", type=int, default=1)
    try:
        uvloop.run(run(parser.parse_args()))
    except (OSError, ValueError, UserError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

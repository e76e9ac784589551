"""`python -m tests.stress.router`: what the router is never to break at, thousands of times over.

Mutated and hostile requests, servers killed under streams, stops in a storm of requests, and too few file descriptors.
It prints a row for each, and ends with status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvloop

from tests.live.router.conftest import Double, beside, read_message
from tests.live.router.test_bodies import HOSTILE, STALL_S
from tests.live.router.test_descriptors import LIMITED
from tests.live.router.test_stop import stop_in_a_storm
from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RoundRobin

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")
GOOD = {"text": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": True, "n": 1}
ANSWERED = range(200, 600)
FAULTS = b'\x00\r\n :,"[]{}\\\xff9'


class Report:
    """Rows of what was tried and what came of it."""

    def __init__(self) -> None:
        self.lost = 0
        print("| what | tried | answers | lost | longest stall, ms |\n|---|---:|---|---:|---:|", flush=True)

    def row(self, what: str, tried: int, answers: Counter[str], lost: int, stall_s: float | None) -> None:
        """Print one, and keep whether it was good."""
        told = ", ".join(f"{number} x {name}" for name, number in sorted(answers.items()))
        shown = "" if stall_s is None else f"{stall_s * 1000:.1f}"
        print(f"| {what} | {tried} | {told} | {lost} | {shown} |", flush=True)
        self.lost += lost + (stall_s is not None and stall_s > STALL_S)


def servers(number: int) -> tuple[list[Double], list[Double]]:
    """Doubles of prefill and decode servers."""
    rooms: dict[int, asyncio.Event] = {}
    return [Double("prefill", rooms) for _ in range(number)], [Double("decode", rooms) for _ in range(number)]


def router(prefill: list[Double], decode: list[Double], **settings: Any) -> RouterServer:
    """A router in front of them, in the running loop."""
    return RouterServer(
        [Backend(each.url, 1) for each in prefill],
        [Backend(each.url) for each in decode],
        RoundRobin(),
        RoundRobin(),
        RouterSettings(**({"drain_s": 1.0, "health_interval_s": 0.2} | settings)),
    )


def posted(path: str, body: bytes) -> bytes:
    """A request."""
    return f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def outcome(port: int, raw: bytes, timeout_s: float = 30.0) -> str:
    """What a client sees: a status, `broken` for an answer without its end, `closed`, or `nothing`, which is lost."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            try:
                writer.write(raw)
                answer = await read_message(reader)
                return str(answer.status) if answer.whole else "broken"
            finally:
                writer.transport.abort()
    except TimeoutError:
        return "nothing"
    except (asyncio.IncompleteReadError, OSError):
        return "closed"


def mutated(draw: random.Random) -> bytes:
    """A good request with a few bytes changed, dropped, doubled or cut; a cut one is closed by its client."""
    raw = bytearray(posted(draw.choice(PATHS), json.dumps(GOOD | {"pad": "x" * draw.choice((0, 50, 40_000))}).encode()))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(raw))
        match draw.randrange(3):
            case 0:
                raw[at] = draw.choice(FAULTS)
            case 1:
                del raw[at : at + draw.randint(1, 9)]
            case _:
                raw[at:at] = raw[at : at + draw.randint(1, 40)]
    return bytes(raw)


async def fuzz(report: Report, options: argparse.Namespace) -> None:
    """Broken requests and hostile bodies, a good request after every hundred."""
    prefill, decode = servers(1)
    for double in (*prefill, *decode):
        await double.start()
    draw, answers, lost = random.Random(options.seed), Counter[str](), 0
    limits = {"header_timeout_s": 0.5, "body_timeout_s": 0.5}
    with beside(partial(router, prefill, decode, **limits)) as (ours, longest):
        for _ in range(options.requests // 50):
            batch = []
            for _ in range(50):  # one after another, or the stalls are those of fifty
                batch.append(asyncio.ensure_future(outcome(ours.port, mutated(draw))))
                await asyncio.sleep(0.001)
            answers.update(await asyncio.gather(*batch))
            lost += await outcome(ours.port, posted("/generate", b'{"text": "a"}')) != "200"
        report.row("mutated requests", options.requests, answers, lost + answers["nothing"], longest[0])
    answers = Counter()
    with beside(partial(router, prefill, decode)) as (ours, longest):
        for body in HOSTILE.values():
            for double in (*prefill, *decode):
                double.script = _takes_all
            answers[await outcome(ours.port, posted(draw.choice(PATHS), body))] += 1
        report.row("bodies of 16 MB", len(HOSTILE), answers, answers["nothing"] + answers["closed"], longest[0])
    for double in (*prefill, *decode):
        await double.kill()


async def _takes_all(double: Double, _: Any, writer: asyncio.StreamWriter) -> None:
    double.answer(writer, b"{}")


async def kills(report: Report, options: argparse.Namespace) -> None:
    """Servers die and come back under streams."""
    prefill, decode = servers(2)
    for double in (*prefill, *decode):
        double.gap_s, double.tokens = 0.01, 10
        await double.start()
    draw, answers, killed = random.Random(options.seed), Counter[str](), 0
    raw = posted("/generate", b'{"text": "a", "stream": true}')
    with beside(partial(router, prefill, decode)) as (ours, longest):
        end_s, running = time.monotonic() + options.seconds, set[asyncio.Task[str]]()
        while time.monotonic() < end_s:
            for _ in range(5):
                running.add(asyncio.ensure_future(outcome(ours.port, raw)))
            await asyncio.sleep(0.05)
            if draw.random() < 0.2:
                victim = draw.choice((*prefill, *decode))
                await victim.kill()
                killed += 1
                await asyncio.sleep(0.1)
                await victim.start()
        answers.update(await asyncio.gather(*running))
        await asyncio.sleep(1.0)
        lost = answers["nothing"] + answers["closed"] + ours.core.in_flight + (await outcome(ours.port, raw) != "200")
        report.row(f"streams, {killed} servers killed", len(running), answers, lost, longest[0])
    for double in (*prefill, *decode):
        await double.kill()


async def shortage(report: Report, options: argparse.Namespace) -> None:
    """More streams than there are file descriptors for."""
    prefill, decode = servers(1)
    for double in (*prefill, *decode):
        double.gap_s = 0.02
        await double.start()
    line = ["--prefill", f"{prefill[0].url},1", "--decode", decode[0].url, "--queue-timeout-s", "1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIMITED.format(soft=256, hard=1024), *line, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said = ""
    while "listening" not in said:
        said = (await process.stderr.readline()).decode()
    port, raw, answers = (
        int(said.rpartition(":")[2]),
        posted("/generate", b'{"text": "a", "stream": true}'),
        Counter[str](),
    )
    for _ in range(options.turns):
        calls = [asyncio.ensure_future(outcome(port, raw)) for _ in range(700)]
        answers.update(await asyncio.gather(*calls))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
    blamed = 2 - sum((await read_message(reader)).json["up"].values())
    writer.transport.abort()
    process.terminate()
    await process.wait()
    lost = answers["nothing"] + answers["closed"] + blamed
    report.row("streams, 700 at a time, 1,024 descriptors", 700 * options.turns, answers, lost, None)
    for double in (*prefill, *decode):
        await double.kill()


def stops(report: Report, options: argparse.Namespace) -> None:
    """Stops in a storm of requests, in both event loops."""
    answers, runs = Counter[str](), {"asyncio": asyncio.run, "uvloop": uvloop.run}
    for turn in range(options.turns * 10):
        for name, run in runs.items():
            try:
                run(stop_in_a_storm(0.003 * (turn % 30 + 1), 0.001 if turn % 2 else 0.05))
            except AssertionError:
                answers[f"failed ({name})"] += 1
            else:
                answers["clean"] += 1
    tried = sum(answers.values())
    report.row("stops in a storm", tried, answers, tried - answers["clean"], None)


def main() -> None:
    """Run all, and print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.router", description=__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="mutated ones")
    parser.add_argument("--seconds", type=float, default=30.0, help="of streams under kills")
    parser.add_argument("--turns", type=int, default=6, help="of shortages, and a tenth of the stops")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = Report()
    works: tuple[Callable[..., Coroutine[Any, Any, None]], ...] = (fuzz, kills, shortage)
    for work in works:
        uvloop.run(work(report, options))
    stops(report, options)
    sys.exit(1 if report.lost else 0)


if __name__ == "__main__":
    main()

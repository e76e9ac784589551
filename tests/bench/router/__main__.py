"""`python -m tests.bench.router`: CPU and added latency of P/D routers at the same rate.

Needs a C compiler: servers and load are C, so that the router is the only thing slow. `--rivals ENV` names a virtual
environment that holds other routers (`pip install sglang-router smg`); without it only ours is measured.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from pathlib import Path

from tests.bench.router.measure import Bench, Contender, Load, Result, contenders
from voltana.errors import UserError

_COLUMNS = (
    "router", "req/s", "done", "CPU s/1k req", "CPU s/1M chunks", "TTFT +p50", "TTFT +p99", "gap +p99",
    "delay p50", "delay p99", "RSS MB",
)  # fmt: skip


def main() -> None:
    """Measure and print a Markdown table. Added latencies are differences of percentiles to the direct run, in ms."""
    options = _parser().parse_args()
    load = Load(options.seconds, options.chunks, options.gap_ms, options.first_ms, options.chunk_bytes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), load)
            chosen = [each for each in contenders(options.rivals) if not options.only or each.name in options.only]
            _compare(bench, chosen, options.rates, options.repeat)
            if options.maximum:
                _maximum(bench, chosen, options.maximum)
    except UserError as error:
        sys.exit(f"router bench: error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.router", description=__doc__)
    parser.add_argument("--rivals", type=Path, help="virtual environment with sglang-router and smg")
    parser.add_argument("--only", nargs="+", help="names of routers to measure")
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 40.0], help="requests per second")
    parser.add_argument("--maximum", type=float, nargs="+", help="also climb these rates until one is not sustained")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the routers take turns in each")
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--chunk-bytes", type=int, default=304)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--first-ms", type=float, default=20.0)
    return parser


def _compare(bench: Bench, chosen: list[Contender], rates: list[float], rounds: int) -> None:
    _row(_COLUMNS)
    _row(["---"] * len(_COLUMNS))
    for seed in range(1, rounds + 1):
        for rate in rates:
            direct = bench.run(None, rate, seed)
            _row(_cells("direct", rate, direct, direct))
            for contender in chosen:
                _row(_cells(contender.name, rate, bench.run(contender, rate, seed), direct))


def _cells(name: str, rate: float, result: Result, direct: Result) -> list[str]:
    ttft, gap, delay = result.ttft_ms, result.gap_ms, result.delay_ms
    return [
        name,
        f"{rate:g}",
        f"{result.completed}/{result.sent}",
        f"{result.cpu_s / result.sent * 1e3:.1f}",
        f"{result.cpu_s / max(result.chunks, 1) * 1e6:.1f}",
        f"{ttft.p50 - direct.ttft_ms.p50:.2f}",
        f"{ttft.p99 - direct.ttft_ms.p99:.2f}",
        f"{gap.p99 - direct.gap_ms.p99:.2f}",
        f"{delay.p50:.2f}",
        f"{delay.p99:.2f}",
        f"{result.rss_mb:.0f}",
    ]


def _maximum(bench: Bench, chosen: list[Contender], rates: list[float]) -> None:
    """The highest rate at which all requests complete and 99 % of chunks come within one gap of their sending."""
    print()
    _row(["router", "sustained req/s", "chunk delay p99 ms there", "first not sustained"])
    _row(["---"] * 4)
    for contender in chosen:
        best, told, failed = 0.0, "-", "none tried"
        for rate in sorted(rates):
            result = bench.run(contender, rate, 1)
            if result.completed < result.sent or result.delay_ms.p99 > bench.load.gap_ms:
                failed = f"{rate:g} ({result.completed}/{result.sent}, p99 {result.delay_ms.p99:.0f} ms)"
                break
            best, told = rate, f"{result.delay_ms.p99:.1f}"
        _row([contender.name, f"{best:g}", told, failed])


def _row(cells: tuple[str, ...] | list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    socket.setdefaulttimeout(5)
    main()

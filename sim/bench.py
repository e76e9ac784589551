"""How fast the simulator is: `python -m sim.bench` prints a table of CPU seconds, each the median of five.

The workload: 2P2D, Llama-3.1-8B, 2,000 requests, Poisson arrivals at 8 per second, log-normal lengths with means 226
(sigma 1.0, 4..2000) and 202 (sigma 0.8, 4..1500), seed 0; energy and records on. With `--scale`, also a million
requests on 64P64D.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

REPEATS = 5
WORKLOAD = ("trace=lognormal", "arrival=poisson", "rps=8", "requests=2000", "duration_s=null", "seed=0")
SCALE = (
    "trace=lognormal",
    "rps=256",
    "requests=1000000",
    "duration_s=null",
    "cluster.prefill_instances=64",
    "cluster.decode_instances=64",
    "seed=0",
)


class Cost(NamedTuple):
    """What a process used."""

    cpu_s: float
    wall_s: float
    peak_mb: float


class Line(NamedTuple):
    """One row of the table."""

    what: str
    value: str
    target: str


def run_process(arguments: Sequence[str]) -> Cost:
    """Run a Python process to its end; its output is dropped."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {status}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, usage.ru_maxrss / 1024)


def simulation_cpu_s(*overrides: str) -> float:
    """CPU seconds of the simulation alone, records included, in a process that has run it once before."""
    from sim.compose import compose_sim
    from sim.run import simulate

    values = compose_sim(*WORKLOAD, *overrides)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS + 1):
            started = time.process_time()
            simulate(values, Path(folder))
            times.append(time.process_time() - started)
    return statistics.median(times[1:])


def command(folder: str, *overrides: str) -> list[str]:
    """Arguments for a Python process that is voltana-sim."""
    return ["-c", "from sim.commands import simulate; simulate()", *overrides, f"hydra.run.dir={folder}"]


def small_lines() -> list[Line]:
    """The 2P2D workload and the start-up."""
    lines = []
    for policy, target in (("static_max", "0.15"), ("voltana", "0.25")):
        cpu = simulation_cpu_s(f"policy={policy}")
        lines.append(Line(f"simulation alone, policy={policy} (CPU s)", f"{cpu:.3f}", f"<= {target}"))
        lines.append(Line("    per request (us)", f"{cpu / 2000 * 1e6:.0f}", ""))
    with tempfile.TemporaryDirectory() as folder:
        whole = _median(lambda: run_process(command(folder, *WORKLOAD, "policy=voltana")))
    lines.append(Line("whole process, policy=voltana (CPU s)", f"{whole.cpu_s:.2f}", "<= 1.5"))
    lines.append(Line("    peak memory (MB)", f"{whole.peak_mb:.0f}", "<= 150"))
    bare = _median(lambda: run_process(["-c", "pass"]))
    imported = _median(lambda: run_process(["-c", "import sim"]))
    lines.append(Line("import sim (CPU s)", f"{imported.cpu_s - bare.cpu_s:.3f}", "<= 0.5"))
    reference = simulation_cpu_s("policy=static_max", "engine=reference")
    lines.append(Line("for comparison: engine=reference, policy=static_max (CPU s)", f"{reference:.2f}", ""))
    return lines


def scale_lines() -> list[Line]:
    """A million requests on 64P64D, once."""
    lines = []
    for policy in ("static_max", "voltana"):
        with tempfile.TemporaryDirectory() as folder:
            cost = run_process(command(folder, *SCALE, f"policy={policy}"))
        lines.append(Line(f"64P64D, 1,000,000 requests, policy={policy} (CPU s)", f"{cost.cpu_s:.0f}", ""))
        lines.append(Line("    per request (us)", f"{cost.cpu_s:.0f}", "<= 2x the small case"))
        lines.append(Line("    peak memory (MB)", f"{cost.peak_mb:.0f}", "<= 500"))
    return lines


def _median(measure: Callable[[], Cost]) -> Cost:
    costs = [measure() for _ in range(REPEATS)]
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m sim.bench", description=__doc__)
    parser.add_argument("--scale", action="store_true", help="also a million requests on 64P64D (minutes)")
    arguments = parser.parse_args()
    table = Table("measurement", "value", "target", title=f"voltana on Python {sys.version.split()[0]}")
    for line in small_lines() + (scale_lines() if arguments.scale else []):
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()

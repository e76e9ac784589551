"""How fast the simulator is: `python -m tests.bench.simulator` prints a table of CPU seconds, each the median of five.

The workload: 2P2D, Llama-3.1-8B, 2,000 requests, Poisson arrivals at 8 per second, log-normal lengths with means 226
(sigma 1.0, 4..2000) and 202 (sigma 0.8, 4..1500), seed 0; energy and records on. With `--scale`, also a million
requests on 64P64D. With `--decisions`, only what a decision costs (`tests.bench.decisions`).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from voltana.app.terminal import plain_console
from voltana.compiled import version

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


PEAK_MEMORY = "import sys; print(open('/proc/self/status').read(), file=sys.stderr)"
"""Ends a process's script: its own high-water mark (getrusage would count that of the process which started it)."""


def run_process(script: str, *arguments: str, python: str = sys.executable) -> Cost:
    """Run a Python script to its end; its output is dropped."""
    started = time.perf_counter()
    command = [python, "-c", f"{script}\n{PEAK_MEMORY}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    peak = re.search(r"VmHWM:\s*(\d+) kB", told)
    if status or peak is None:
        raise RuntimeError(f"{script} ended with status {status}: {told}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, int(peak[1]) / 1024)


def simulate_in_a_process(*overrides: str) -> Cost:
    """voltana-sim, records included."""
    with tempfile.TemporaryDirectory() as folder:
        return run_process(
            "from voltana.sim.run.commands import simulate; simulate()", *overrides, f"hydra.run.dir={folder}"
        )


def simulation_cpu_s(*overrides: str) -> float:
    """CPU seconds from the first arrival to the last row handed to the writer, in a process that has run it before."""
    from voltana.record import RecordWriter
    from voltana.section import parse
    from voltana.sim.run.build import RunBuilder
    from voltana.sim.run.compose import compose_sim
    from voltana.sim.run.config import SimConfig
    from voltana.sim.run.simulate import engine, rare_garbage_collection
    from voltana.sim.serving.recorder import Recorder

    values = compose_sim(*WORKLOAD, *overrides)
    config = parse(SimConfig, values)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS + 1):
            builder = RunBuilder(config)
            spec, requests = builder.cluster(), builder.requests()
            with RecordWriter(Path(folder), values) as writer:
                cluster = engine(config.engine)(spec, requests, Recorder(writer, builder.slo, {}), writer.instance)
                started = time.process_time()
                with rare_garbage_collection():
                    cluster.run()
                times.append(time.process_time() - started)
    return statistics.median(times[1:])


def small_lines() -> list[Line]:
    """The 2P2D workload and the start-up."""
    lines = []
    for policy, target in (("static_max", "0.15"), ("voltana", "0.25")):
        cpu = simulation_cpu_s(f"policy={policy}")
        lines.append(Line(f"simulation alone, policy={policy} (CPU s)", f"{cpu:.3f}", f"<= {target}"))
        lines.append(Line("    per request (us)", f"{cpu / 2000 * 1e6:.0f}", ""))
    whole = _median(lambda: simulate_in_a_process(*WORKLOAD, "policy=voltana"))
    lines.append(Line("whole process, policy=voltana (CPU s)", f"{whole.cpu_s:.2f}", "<= 1.5"))
    lines.append(Line("    peak memory (MB)", f"{whole.peak_mb:.0f}", "<= 120"))
    bare = _median(lambda: run_process("pass"))
    for imports, target in (("voltana", "0.05"), ("voltana.sim.run.simulate", "0.5")):
        imported = _median(lambda what=imports: run_process(f"import {what}"))  # type: ignore[misc]
        lines.append(Line(f"import {imports} (CPU s)", f"{imported.cpu_s - bare.cpu_s:.3f}", f"<= {target}"))
    reference = simulation_cpu_s("policy=static_max", "engine=reference")
    lines.append(Line("for comparison: engine=reference, policy=static_max (CPU s)", f"{reference:.2f}", ""))
    return lines


def scale_lines() -> list[Line]:
    """A million requests on 64P64D, once."""
    lines = []
    for policy in ("static_max", "voltana"):
        cost = simulate_in_a_process(*SCALE, f"policy={policy}")
        lines.append(Line(f"64P64D, 1,000,000 requests, policy={policy} (CPU s)", f"{cost.cpu_s:.0f}", ""))
        lines.append(Line("    per request (us)", f"{cost.cpu_s:.0f}", "<= 2x the small case"))
        lines.append(Line("    peak memory (MB)", f"{cost.peak_mb:.0f}", "<= 500"))
    return lines


def decisions_table() -> Table:
    """What a decision of every policy and router costs."""
    from tests.bench.decisions import decision_costs

    table = Table("who decides", "median us", "p99 us", "target", "asked")
    for cost in decision_costs():
        target = "" if cost.target_us is None else f"<= {cost.target_us:g}"
        table.add_row(cost.what, f"{cost.median_us:.1f}", f"{cost.p99_us:.1f}", target, str(cost.answers))
    return table


def _median(measure: Callable[[], Cost]) -> Cost:
    costs = [measure() for _ in range(REPEATS)]
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.simulator", description=__doc__)
    parser.add_argument("--scale", action="store_true", help="also a million requests on 64P64D (minutes)")
    parser.add_argument("--decisions", action="store_true", help="microseconds per decision of every policy instead")
    arguments = parser.parse_args()
    if arguments.decisions:
        plain_console().print(decisions_table())
        return
    table = Table("measurement", "value", "target", title=f"voltana {version()}, Python {sys.version.split()[0]}")
    for line in small_lines() + (scale_lines() if arguments.scale else []):
        table.add_row(*line)
    plain_console().print(table)


if __name__ == "__main__":
    main()

"""The simulator beside others that do the same work: `make bench-peers`, or `python -m tests.bench.peers ENVIRONMENT`.

The workload of `tests.bench.simulator`, written as a trace of the Mooncake format, is replayed in turn, on two prefill
and two decode workers, by NVIDIA Dynamo's offline replay (package ai-dynamo, without energy, clocks or records) and by
voltana. What is printed are medians of CPU seconds and their ratios: machines differ, and the same machine from one
minute to the next. Other peers are in no package registry.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from rich.table import Table

from tests.bench.simulator import REPEATS, WORKLOAD, run_process, simulate_in_a_process, simulation_cpu_s
from voltana.app.terminal import plain_console
from voltana.compiled import version

DYNAMO = ("ai-dynamo>=1.6.1", "ai-dynamo-runtime>=1.6.1")
NEEDED = ("numpy", "pydantic", "uvloop")
"""By the part that is run; all that it asks for would be gigabytes."""
REPLAY = """
import sys, time
from dynamo.replay import run_trace_replay
started = time.process_time()
run_trace_replay(
    sys.argv[1], replay_mode="offline", num_prefill_workers=2, num_decode_workers=2, trace_block_size=16,
    prefill_engine_args={"engine": {"worker_type": "prefill", "block_size": 16}},
    decode_engine_args={"engine": {"worker_type": "decode", "block_size": 16}},
)
print(time.process_time() - started)
"""


def install(environment: Path) -> Path:
    """The interpreter of an environment with the peers."""
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *NEEDED], check=True)
    subprocess.run([*pip, "--no-deps", *DYNAMO], check=True)
    return python


def write_trace(path: Path) -> None:
    """The requests of the workload as Mooncake's traces have them: milliseconds, lengths, hashes of prompt blocks."""
    from voltana.section import parse
    from voltana.sim.run.build import RunBuilder
    from voltana.sim.run.compose import compose_sim
    from voltana.sim.run.config import SimConfig

    lines, block = [], 0
    for request in RunBuilder(parse(SimConfig, compose_sim(*WORKLOAD))).requests():
        blocks = -(-request.input_tokens // 16)
        told = {
            "timestamp": round(1000 * request.arrival_s, 3),
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": list(range(block, block + blocks)),
        }
        block += blocks
        lines.append(json.dumps(told) + "\n")
    path.write_text("".join(lines))


def replay(python: Path, trace: Path) -> tuple[float, float]:
    """CPU seconds of Dynamo's replay alone, and of its whole process."""
    words = [str(python), "-c", REPLAY, str(trace)]
    alone = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
    return alone, run_process(REPLAY, str(trace), python=str(python)).cpu_s


def main() -> None:
    """Install, measure in turn, print."""
    python = install(Path(sys.argv[1]))
    columns: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        write_trace(trace)
        for _ in range(REPEATS):
            alone, whole = replay(python, trace)
            measured = {"Dynamo: replay alone": alone, "Dynamo: whole process": whole}
            for policy in ("static_max", "voltana"):
                choice = f"policy={policy}"
                measured[f"voltana: simulation alone, {choice}"] = simulation_cpu_s(choice)
                measured[f"voltana: whole process, {choice}"] = simulate_in_a_process(*WORKLOAD, choice).cpu_s
            for what, cost in measured.items():
                columns.setdefault(what, []).append(cost)
    medians = {what: statistics.median(costs) for what, costs in columns.items()}
    table = Table("measurement", "CPU s", "of Dynamo's", title=f"voltana {version()}, medians of {REPEATS} in turn")
    for what, cost in medians.items():
        peer = medians["Dynamo: replay alone" if "alone" in what else "Dynamo: whole process"]
        table.add_row(what, f"{cost:.3f}", f"{cost / peer:.2f}")
    plain_console().print(table)


if __name__ == "__main__":
    main()

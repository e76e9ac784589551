"""How far the simulator is from a live run: the run's own requests, simulated with the run's own configuration."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.record.summary import PERCENTILES

if TYPE_CHECKING:
    from rich.table import Table

LIVE_ONLY = ("servers", "control", "router", "client", "drain_s")
"""Keys of a live configuration that the simulator does not know."""
SIM_ONLY: Mapping[str, Any] = {
    "drift": {"name": "none", "at_s": None, "slowdown": 1.0, "base_w": 0.0},
    "front_end": {"name": "none", "leg_s": 0.0, "stall_s": 0.0, "stall_legs": None},
    "engine": "fast",
    "experiment": None,
    "bound": False,
}


class Compared(NamedTuple):
    """A number of both worlds."""

    name: str
    live: float | None
    simulated: float | None
    in_points: bool
    """Whether the difference is told in points, not relative."""
    decimals: int

    @property
    def difference(self) -> float | None:
        """Live over simulated less one, %; or live minus simulated. None where one of them is missing."""
        if self.live is None or self.simulated is None:
            return None
        if self.in_points:
            return self.live - self.simulated
        return 100 * (self.live / self.simulated - 1) if self.simulated else None


_NUMBERS: tuple[tuple[str, tuple[str, ...], float, bool, int], ...] = (
    ("energy, kJ", ("energy_j", "total"), 1e-3, False, 2),
    ("energy of prefill, kJ", ("energy_j", "prefill"), 1e-3, False, 2),
    ("energy of decode, kJ", ("energy_j", "decode"), 1e-3, False, 2),
    ("TTFT met, %", ("ttft_attainment",), 100, True, 1),
    ("ITL met, %", ("itl_attainment",), 100, True, 1),
    ("both met, %", ("joint_attainment",), 100, True, 1),
    ("goodput, 1/s", ("goodput_per_s",), 1, False, 1),
    *((f"TTFT {p}, ms", ("ttft_ms", p), 1, False, 1) for p in PERCENTILES),
    *((f"ITL {p}, ms", ("itl_ms", p), 1, False, 2) for p in PERCENTILES),
    *((f"E2E {p}, ms", ("e2e_ms", p), 1, False, 0) for p in PERCENTILES),
    ("duration, s", ("duration_s",), 1, False, 1),
    ("clock changes", ("clock_changes",), 1, False, 0),
)


def gap(folder: Path) -> list[Compared]:
    """Compare a live record with its simulation, which runs in a process of its own.

    Raises:
        UserError: it is no record of a live run, or it cannot be simulated.
    """
    record = RunRecord(folder)
    if record.summary.get("source") != "live":
        raise UserError(f"gap: found a record of source {record.summary.get('source')!r}, allowed: live")
    with tempfile.TemporaryDirectory(prefix="voltana-gap-") as place:
        simulated = _simulate(record, Path(place))
    return list(compared(record.summary, simulated))


def compared(live: Mapping[str, Any], simulated: Mapping[str, Any]) -> Iterator[Compared]:
    """The numbers of two summaries side by side."""
    for name, path, scale, in_points, decimals in _NUMBERS:
        values = [_value(summary, path) for summary in (live, simulated)]
        first, second = (None if value is None else value * scale for value in values)
        yield Compared(name, first, second, in_points, decimals)


def _value(summary: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None  # older records lack some
    return None if value is None else float(value)


def _simulate(record: RunRecord, place: Path) -> Mapping[str, Any]:
    trace, settings, out = place / "requests.csv", place / "config.yaml", place / "run"
    rows = record.requests()
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival_s", "input_tokens", "output_tokens"])
        writer.writerows(rows[["arrival_s", "input_tokens", "output_tokens"]].itertuples(index=False))
    settings.write_text(yaml.safe_dump(simulator_config(record.config, trace, len(rows))))
    command = [sys.executable, "-P", "-m", "voltana.sim.run.rerun", "--config", str(settings), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"gap: the simulation failed: {lines[-1]}")
    return RunRecord(out).summary


def simulator_config(live: Mapping[str, Any], trace: Path, requests: int) -> dict[str, Any]:
    """The configuration of voltana-sim for a live one, with its so many requests from a file."""
    shared = {key: value for key, value in live.items() if key not in LIVE_ONLY}
    return {
        **shared,
        **SIM_ONLY,
        "trace": {"name": "file", "_target_": "voltana.traces.files.FileTrace", "path": str(trace)},
        "arrival": {"name": "timestamps", "_target_": "voltana.traces.arrivals.Timestamps"},
        "duration_s": None,
        "requests": requests,
    }


def rich_table(rows: list[Compared]) -> Table:
    """As a person reads it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("live", "simulated", "difference"):
        table.add_column(name, justify="right")
    for row in rows:
        shown = ["-" if value is None else f"{value:.{row.decimals}f}" for value in (row.live, row.simulated)]
        difference = "-" if row.difference is None else f"{row.difference:+.1f} {'points' if row.in_points else '%'}"
        table.add_row(row.name, *shown, difference)
    return table

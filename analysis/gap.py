"""How far the simulator is from a live run: the run beside its twin, which `voltana-sim replay=RECORD` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.errors import UserError
from voltana.record import RunRecord, find_records
from voltana.record.summary import PERCENTILES

if TYPE_CHECKING:
    from rich.table import Table


class Compared(NamedTuple):
    """A number of both worlds, in the unit that its name tells."""

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

    @property
    def verdict(self) -> str:
        """What is allowed, and whether it is that; nothing where nothing is asked or known."""
        allowed = ALLOWED.get(self.name)
        if allowed is None or self.difference is None:
            return ""
        return f"±{allowed:g}{', beyond' if abs(self.difference) > allowed else ''}"


ALLOWED = {
    "energy, kJ": 3.0,
    **dict.fromkeys(("TTFT met, %", "ITL met, %", "both met, %"), 3.0),
    **dict.fromkeys(("TTFT p50, ms", "ITL p50, ms"), 5.0),
}
"""By name, how far a live run on emulated servers may be from its simulation, % or points, where nothing is late."""

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


def pair(folders: Sequence[str]) -> tuple[RunRecord, RunRecord]:
    """The records of a live run and of the simulation of its requests, which the folders hold in any order.

    Raises:
        UserError: there are others than these two, one was interrupted, or their requests differ.
    """
    records = find_records(folders)
    found = [(record.summary.get("source"), record) for record in records]
    sources = [str(source) for source, _ in found]
    if sorted(sources) != ["live", "sim"]:
        told = ", ".join(f"{record.folder} ({source})" for source, record in found)
        raise UserError(
            f"runs: found {told}, allowed with gap=true: the record of a live run and that of its simulation, "
            "which voltana-sim replay=RECORD makes"
        )
    for record in records:
        if record.interrupted:
            raise UserError(
                f"runs: found {record.folder}, which was interrupted, allowed with gap=true: runs that ended"
            )
    live, simulated = (records[sources.index(source)] for source in ("live", "sim"))
    if _requests(live) != _requests(simulated):
        raise UserError(
            f"runs: found other requests in {simulated.folder} than in {live.folder}, allowed with gap=true: the same, "
            f"as voltana-sim replay={live.folder} makes them"
        )
    return live, simulated


def _requests(record: RunRecord) -> list[tuple[float, int, int]]:
    columns = ["arrival_s", "input_tokens", "output_tokens"]
    return sorted(record.requests()[columns].itertuples(index=False, name=None))


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


def rich_table(rows: list[Compared]) -> Table:
    """A row per number: its name, live, simulated, the difference in % or points and what is allowed; - for what is not
    known."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("live", "simulated", "difference"):
        table.add_column(name, justify="right")
    table.add_column("allowed")
    for row in rows:
        shown = ["-" if value is None else f"{value:.{row.decimals}f}" for value in (row.live, row.simulated)]
        difference = "-" if row.difference is None else f"{row.difference:+.1f} {'points' if row.in_points else '%'}"
        table.add_row(row.name, *shown, difference, row.verdict)
    return table

"""The console script `voltana-live`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.cli import hydra_command
from voltana.app.extras import require
from voltana.app.terminal import plain_console, short
from voltana.errors import RunError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from voltana.live.run.config import LiveConfig

REASONS = 5
"""Shown at most."""


DRY_RUN = "--dry-run"


def main() -> None:
    """voltana-live: replay a trace against servers, record it like a simulated run.

    With --dry-run, look whether this machine can; exit status 1 if something is to be done first.
    """
    if DRY_RUN not in sys.argv[1:]:
        hydra_command("live", _live, program="voltana-live")()
        return
    sys.argv = [word for word in sys.argv if word != DRY_RUN]
    ready: list[bool] = []
    hydra_command("live", lambda config: ready.append(_look(config)), program="voltana-live")()
    sys.exit(0 if all(ready) else 1)


def _look(config: DictConfig) -> bool:
    """Print what is ready for a run and what is not; returns whether all is."""
    from hydra.core.hydra_config import HydraConfig

    from voltana.app.resolve import resolve
    from voltana.section import parse

    require("voltana-live", "live")
    from voltana.live.run.config import LiveConfig, check
    from voltana.live.run.ready import Readiness, show

    folder = Path(HydraConfig.get().runtime.output_dir)
    logging.basicConfig(level=logging.ERROR)  # what is logged at a start stands in the table
    try:
        checked = check(parse(LiveConfig, resolve(config)))
        return show(Readiness(checked, short(folder)).rows(), plain_console())
    finally:
        _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Remove the run's folder, which Hydra has made, and those between here and it that are empty now."""
    here = Path.cwd()
    with suppress(OSError):
        for each in (folder, *(parent for parent in folder.parents if here in parent.parents)):
            each.rmdir()


def _live(config: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from voltana.app.resolve import overwrite_of, resolve
    from voltana.app.sweeps import this_sweep
    from voltana.record.provenance import already_there

    require("voltana-live", "live")
    console = plain_console(stderr=True)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    folder = Path(HydraConfig.get().runtime.output_dir)
    values, overwrite = resolve(config), overwrite_of(config)
    there = None if overwrite else already_there(folder, values)
    if there is not None and went_wrong(there.summary) is None:
        print(f"{short(folder)}: this run is there already; overwrite=true runs it again", file=sys.stderr)
        print_run(there.summary, folder)
        return
    summary = replay(values, folder, console, overwrite=overwrite, sweep=this_sweep())
    print_run(summary, folder)
    wrong = went_wrong(summary)
    if wrong is not None:
        raise RunError(wrong)


def went_wrong(summary: dict[str, Any]) -> str | None:
    """Why a run did not measure what it was to measure: a server died meanwhile, or no request completed."""
    live = summary["live"]
    for name, how in live["servers_ended"].items():
        lines = (how if how.startswith(name) else f"{name}: {how}").splitlines()
        told = " ".join(line.strip() for line in dict.fromkeys([lines[0], lines[-1]]))
        others = len(live["servers_ended"]) - 1
        return f"a server died, {told}{f'; {others} others died too' if others else ''}"
    if not summary["requests"]["completed"]:
        reasons = [reason for reason, _ in _most(live["failures"])]
        return f"no request completed: {reasons[0] if reasons else 'none ended'}"
    return None


def replay(
    values: dict[str, Any],
    folder: Path,
    console: Any,
    *,
    overwrite: bool = False,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a configuration (`conf/live.yaml`) and write its record; return the summary.

    Args:
        values: the resolved configuration.
        folder: of the record.
        console: a rich console that shows how it goes.
        overwrite: whether the finished record of another configuration may be replaced.
        sweep: which sweep the run belongs to (`voltana.app.sweeps`).

    Raises:
        UserError: something in the configuration is wrong, or a part could not be started.
        RunError: the owner of clocks or the load client was lost; what had happened is in the record.
        KeyboardInterrupt: it was interrupted; what had happened is in the record.
    """
    import asyncio

    import uvloop

    from voltana.live.run.config import LiveConfig, check
    from voltana.live.run.session import LiveRun
    from voltana.live.run.view import View
    from voltana.section import parse

    config = check(parse(LiveConfig, values))
    about, arriving_s = _arriving(config)
    view = View(console, f"{config.policy.name}, {about}, servers={config.servers.get('name')}", arriving_s)

    async def run() -> dict[str, Any]:
        return await LiveRun(config, values, folder, view, overwrite=overwrite, sweep=sweep).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        view.end()


def _arriving(config: LiveConfig) -> tuple[str, float | None]:
    """What arrives, in words, and for how long, if it is known. A trace with its own times is read through for that."""
    from voltana.record.summary import rate_in_words
    from voltana.traces.build import foreseen

    rate = config.arrival.get("rate")
    if rate is not None:
        return rate_in_words({"requested_rps": rate, "rate_per_s": None}), config.duration_s
    arrivals, last_s = foreseen(config)
    about = f"{arrivals['count']} requests in {arrivals['span_s']:.1f} s, {rate_in_words(arrivals)}"
    return about, last_s


def print_run(summary: dict[str, Any], folder: Path) -> None:
    """The numbers of a run as a table, and a line below on what they are not."""
    from rich.table import Table

    from voltana.record.resolution import UNCLOCKED, unclocked

    console, table = plain_console(), Table(show_header=False, box=None)
    for name, value in (*_lines(summary), ("run record", str(short(folder)))):
        table.add_row(name, value)
    console.print(table)
    if summary["starved"]:
        told = f" starved: the numbers are the machine's, not the policy's ({'; '.join(summary['starved'])})"
        console.print(told, soft_wrap=True)
    notes = [UNCLOCKED] if unclocked(summary) else []
    for note in [*notes, *summary["energy_notes"]]:
        console.print(f" {note}", soft_wrap=True)


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    from voltana.record.resolution import attainments_in_words
    from voltana.record.summary import arrivals_in_words

    requests, energy, live = summary["requests"], summary["energy_j"], summary["live"]

    def percentiles(kind: str) -> str:
        return " / ".join("-" if v is None else f"{v:.1f}" for v in (summary[kind][p] for p in ("p50", "p90", "p99")))

    def kilojoules(phase: str) -> str:
        return "-" if energy[phase] is None else f"{energy[phase] / 1e3:.1f}"

    def late(kind: str) -> str:
        return " / ".join("-" if v is None else f"{v:.2f}" for v in (live[kind]["p50"], live[kind]["p99"]))

    return [
        *arrivals_in_words(summary["arrivals"]),
        ("requests", f"{requests['completed']} completed, {requests['failed']} failed"),
        *(("", f"{count} failed: {reason}") for reason, count in _most(live["failures"])),
        *((name, how) for name, how in live["servers_ended"].items()),
        ("energy", f"{kilojoules('total')} kJ (prefill {kilojoules('prefill')}, decode {kilojoules('decode')})"),
        *attainments_in_words(summary),
        ("TTFT p50 / p90 / p99", f"{percentiles('ttft_ms')} ms"),
        ("ITL p50 / p90 / p99", f"{percentiles('itl_ms')} ms"),
        ("E2E p50 / p90 / p99", f"{percentiles('e2e_ms')} ms"),
        ("goodput", "-" if summary["goodput_per_s"] is None else f"{summary['goodput_per_s']:.1f} requests/s in time"),
        ("clock changes commanded", f"{summary['clock_changes']}"),
        ("client late by p50 / p99", f"{late('client_lag_ms')} ms"),
        ("telemetry to command p50 / p99", f"{late('decision_ms')} ms"),
    ]


def _most(failures: dict[str, int]) -> list[tuple[str, int]]:
    """The reasons most often met, the rest together."""
    ordered = sorted(failures.items(), key=lambda each: -each[1])
    rest = sum(count for _, count in ordered[REASONS:])
    return [*ordered[:REASONS], *([("other reasons, see summary.json", rest)] if rest else [])]

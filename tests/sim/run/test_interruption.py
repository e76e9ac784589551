"""Whenever Ctrl-C comes, the record that is left is finished and obeys the laws."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from voltana.record import RunRecord
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("engine", "folder"), [("fast", "sim/fast/"), ("reference", "sim/")])
def test_an_interruption_at_any_line_leaves_a_finished_record(tmp_path: Path, engine: str, folder: str) -> None:
    values = compose_sim("policy=static_max", "rps=60", "duration_s=1000", f"engine={engine}")
    for line in range(57_000, 57_240, 8):
        with pytest.raises(KeyboardInterrupt):
            simulate(values, tmp_path / str(line), interrupting(line, folder))
        check(RunRecord(tmp_path / str(line)))


def interrupting(line: int, folder: str) -> Callable[[float], None]:
    """A progress that, from the first arrival on, interrupts as so many lines of a folder have run."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if folder not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if not left:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace if left > 0 else None

    def progress(now_s: float) -> None:
        if left == line:
            sys.settrace(trace)

    return progress


def check(record: RunRecord) -> None:
    summary = record.summary
    assert summary["interrupted"]
    counts = summary["requests"]
    assert (
        counts["submitted"] == counts["completed"] + counts["failed"] + counts["unfinished"] == len(record.requests())
    )
    instances = record.instances()
    end_s = instances.groupby("instance").time_s.shift(-1).fillna(summary["end_s"])
    energy_j = (instances.power_w * (end_s - instances.time_s)).sum()
    assert energy_j == pytest.approx(summary["energy_j"]["total"], rel=1e-6)

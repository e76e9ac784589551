"""Whole live runs: the record, the gap to the simulator, the refusals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.owner import LocalOwner, SteadyGpu
from voltana.record import RunRecord

pytestmark = pytest.mark.slow

SIMULATE, COMPARE = (Path(sys.executable).parent / name for name in ("voltana-sim", "voltana-compare"))
Start = Callable[..., Any]
Checked = Callable[[Path], RunRecord]


def typed(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that ends well."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def beside_its_twin(folder: Path) -> subprocess.CompletedProcess[str]:
    """A live record compared with its simulation."""
    twin = folder.parent / "twin"
    typed(SIMULATE, f"replay={folder}", f"hydra.run.dir={twin}")
    return typed(COMPARE, "--gap", f"runs=[{folder},{twin}]")


def test_a_run_against_emulated_servers(start: Start, checked: Checked) -> None:
    run = start("policy=voltana")
    ended = run.end()
    assert ended.status == 0, ended.output
    record = checked(ended.folder)
    summary = record.summary
    assert summary["requests"]["failed"] == 0
    assert summary["energy_j"]["total"] == pytest.approx(sum(summary["energy_j"]["per_instance"].values()))
    assert summary["live"]["client_lag_ms"]["count"] == summary["requests"]["submitted"]
    assert record.instances().clock_mhz.between(1005, 1410).all()
    assert set(summary["live"]["energy_known_share"].values()) == {1.0} and summary["energy_notes"] == []
    assert record.provenance["depends_on"].keys() == {"code", "predictor"}
    run.nothing_is_left()


def test_the_gap_to_the_simulator(start: Start) -> None:
    """Energy alone is asserted: emulated servers keep exact time however busy this machine is; latencies are not."""
    ended = start("duration_s=6").end()
    assert ended.status == 0, ended.output
    done = beside_its_twin(ended.folder)
    rows = {line[:22].strip(): line[22:].split() for line in done.stdout.splitlines() if "%" in line}
    live_kj, simulated_kj = (float(value) for value in rows["energy, kJ"][:2])
    assert live_kj == pytest.approx(simulated_kj, rel=0.05)


def test_somebody_elses_servers_with_simulated_gpus(attach: Start, checked: Checked) -> None:
    run = attach("rps=5")
    ended = run.end()
    assert ended.status == 0, ended.output
    summary = checked(ended.folder).summary
    assert summary["requests"]["failed"] == 0
    assert summary["energy_j"]["total"] > 4 * 50 * summary["duration_s"]
    assert set(summary["live"]["energy_known_share"].values()) == {1.0}
    run.nothing_is_left()


def test_what_is_recorded_is_what_the_gpus_tell(attach: Start, checked: Checked, tmp_path: Path) -> None:
    """Not what they were commanded, and nothing where they tell nothing.

    All run at 1395 MHz and do not obey. GPU 0 tells nothing, the counter of GPU 3 starts again every two seconds.
    """
    options: list[dict[str, Any]] = [{"silent": True}, {}, {}, {"restarts_s": 2.0}]
    gpus = [SteadyGpu(gpu, (1005, 1410), **each) for gpu, each in enumerate(options)]
    owner = LocalOwner(tmp_path, gpus)
    try:
        ended = attach("control=nvml", f"control.socket={owner.socket}", "policy=static_1005", "rps=5").end()
    finally:
        owner.stop()
    assert ended.status == 0, ended.output
    record = checked(ended.folder)
    frame, summary = record.instances(), record.summary
    clocks = {str(name): set(rows.clock_mhz.dropna()) for name, rows in frame.groupby("instance")}
    assert clocks == {"prefill-0": set(), "prefill-1": {1395}, "decode-0": {1395}, "decode-1": {1395}}
    assert frame[frame.instance == "prefill-0"].clock_mhz.isna().all()
    assert frame[frame.instance != "prefill-0"].clock_mhz.notna().all()
    energy, duration_s = summary["energy_j"], summary["duration_s"]
    known = {name: value for name, value in energy["per_instance"].items() if value is not None}
    close = 1e-2  # a counter is read at a moment known to the millisecond, less well where others want the processor
    assert known == {name: pytest.approx(100 * duration_s, rel=close) for name in ("prefill-1", "decode-0")}
    assert (energy["total"], energy["prefill"], energy["decode"]) == (None, None, None)
    assert (summary["mean_power_w"], summary["energy_per_request_j"]) == (None, None)
    powers = frame[frame.instance == "decode-1"].power_w
    assert powers.isna().any() and powers.dropna().tolist() == pytest.approx([100.0] * powers.notna().sum(), rel=close)
    assert 0.6 < summary["live"]["energy_known_share"]["decode-1"] < 0.9
    assert [note.partition(" ")[0] for note in summary["energy_notes"]] == ["prefill-0:", "decode-1:"]
    assert summary["live"]["commands_refused"]
    for note in summary["energy_notes"]:
        assert note in ended.output
    typed(COMPARE, f"runs={ended.folder}", "baseline=static_1005")
    done = beside_its_twin(ended.folder)
    assert re.search(r"energy, kJ +- +[\d.]+ +- *$", done.stdout, flags=re.MULTILINE)


def test_without_the_owner_of_clocks_it_ends(attach: Start, checked: Checked) -> None:
    run = attach("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(3)
    os.kill(run.child("voltana.live.clocks.command"), signal.SIGKILL)
    ended = run.end()
    assert ended.status == 3
    assert "control: the owner of clocks is gone" in ended.output
    assert checked(ended.folder).summary["interrupted"]
    run.nothing_is_left()


def test_observing_changes_no_clock(start: Start, checked: Checked) -> None:
    ended = start("control=observe", "policy=static_1005").end()
    assert ended.status == 0, ended.output
    record = checked(ended.folder)
    assert record.instances().clock_mhz.between(1200, 1410).all()  # the power limit may lower it
    assert record.summary["clock_changes"] == 0


def test_what_cannot_be_is_refused_in_one_line(start: Start) -> None:
    run = start("control=nvml")
    ended = run.end()
    assert ended.status == 2, ended.output
    assert ended.output.strip().splitlines()[-1] == (
        "voltana-live: error: control: emulated servers are their own GPUs, allowed: simulated, observe"
    )
    assert "Traceback" not in ended.output and "starting servers" not in ended.output
    run.nothing_is_left()

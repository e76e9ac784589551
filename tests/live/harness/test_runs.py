"""Whole live runs: the record, the gap to the simulator, the refusals."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voltana.record import RunRecord

COMPARE = Path(sys.executable).parent / "voltana-compare"
Start = Callable[..., Any]
Checked = Callable[[Path], RunRecord]


def test_a_run_against_emulated_servers(start: Start, checked: Checked) -> None:
    run = start("policy=voltana")
    ended = run.end()
    assert ended.status == 0, ended.output
    record = checked(ended.folder)
    summary = record.summary
    assert summary["requests"]["failed"] == 0
    assert summary["energy_j"]["total"] == pytest.approx(sum(summary["energy_j"]["per_instance"].values()))
    assert summary["live"]["client_lag_ms"]["count"] == summary["requests"]["submitted"]
    assert set(record.instances().clock_mhz) <= {1005, 1410}
    run.nothing_is_left()


def test_the_gap_to_the_simulator(start: Start) -> None:
    """Energy alone is asserted: emulated servers keep exact time however busy this machine is; latencies are not."""
    ended = start("duration_s=6").end()
    assert ended.status == 0, ended.output
    done = subprocess.run([COMPARE, "--gap", ended.folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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
    run.nothing_is_left()


def test_energy_that_no_meter_tells_is_null(attach: Start) -> None:
    """As where there is no driver."""
    ended = attach("control=observe", "rps=5").end()
    assert ended.status == 0, ended.output
    record = RunRecord(ended.folder)
    assert record.summary["energy_j"]["total"] is None
    assert set(record.summary["energy_j"]["per_instance"].values()) == {None}
    assert record.summary["requests"]["failed"] == 0
    assert len(record.instances()) > 4
    for words in ([f"runs={ended.folder}"], ["--gap", str(ended.folder)]):
        done = subprocess.run([COMPARE, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_without_the_owner_of_clocks_it_ends(attach: Start, checked: Checked) -> None:
    run = attach("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(3)
    os.kill(run.child("live.clocks.owner"), signal.SIGKILL)
    ended = run.end()
    assert ended.status == 2
    assert "control: the owner of clocks is gone" in ended.output
    assert checked(ended.folder).summary["interrupted"]
    run.nothing_is_left()


def test_observing_changes_no_clock(start: Start, checked: Checked) -> None:
    ended = start("control=observe", "policy=static_1005").end()
    assert ended.status == 0, ended.output
    record = checked(ended.folder)
    assert set(record.instances().clock_mhz) == {1410}
    assert record.summary["clock_changes"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=throttllem"], "telemetry does not carry"),
        (["policy=oracle"], "asks for truth"),
        (["control=nvml"], "control: emulated servers are their own GPUs, allowed: simulated, observe"),
        (["serving.latency_noise=0.1"], "serving.latency_noise: found 0.1"),
        (["client.token_ids=[5,5]"], "client.token_ids"),
        (["router.max_fligt=3"], "router.max_fligt"),
        (["servers=sglang"], "servers.environment: found null"),
        (["servers=attach", "servers.prefill=[]", "servers.decode=[]"], "servers.prefill: found 0 servers, allowed: 2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(start: Start, overrides: list[str], message: str) -> None:
    run = start(*overrides)
    ended = run.end()
    assert ended.status == 2, ended.output
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith("voltana-live: error: ") and message in last
    assert "Traceback" not in ended.output
    run.nothing_is_left()

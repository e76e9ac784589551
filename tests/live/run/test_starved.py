"""A run whose numbers are the machine's says so."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voltana.live.run.starved import CLIENT_LAG_P99_MS, SERVER_LAG_P99_MS, TRANSPORT_P99_MS, starved
from voltana.record import RunRecord

Start = Callable[..., Any]
FINE = {"p50": 0.1, "p99": 1.0}


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        ((FINE, FINE, {"decode-0": FINE}), []),
        (({"p99": CLIENT_LAG_P99_MS}, {"p99": TRANSPORT_P99_MS}, {"decode-0": {"p99": SERVER_LAG_P99_MS}}), []),
        (({"p99": 55.0}, FINE, {}), ["client lag p99 55.0 ms, allowed: 10 ms"]),
        ((FINE, {"p99": 12.3}, {}), ["telemetry transport p99 12.3 ms, allowed: 10 ms"]),
        (
            (FINE, FINE, {"prefill-0": FINE, "decode-1": {"p99": 99.0}}),
            ["lag of decode-1 p99 99.0 ms, allowed: 10 ms"],
        ),
        (({"p99": None}, {}, {"decode-0": {"p99": None}}), []),
    ],
)
def test_what_is_beyond_its_bound_is_named(latencies: tuple[Any, Any, Any], expected: list[str]) -> None:
    assert starved(*latencies) == expected


@pytest.mark.slow
def test_a_client_and_a_server_that_stood_still_are_told(start: Start, checked: Callable[[Path], RunRecord]) -> None:
    run = start("duration_s=3")
    run.says("of 3 s:")
    run.goes_on(1)
    pids = run.child("voltana.live.run.load"), run.child("voltana.live.servers.emulated --config .*decode-1.json")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.7)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    ended = run.end()
    assert ended.status == 0, ended.output
    told = checked(ended.folder).summary["starved"]
    assert [each for each in told if each.startswith("client lag p99 ")]
    assert [each for each in told if each.startswith("lag of decode-1 p99 ")]
    assert f"starved: the numbers are the machine's, not the policy's ({'; '.join(told)})\n" in ended.output

"""However a run ends, it leaves a valid record where it can, and neither processes nor sockets nor files."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.run.conftest import rows_of
from voltana.record import RunRecord

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
Checked = Callable[[Path], RunRecord]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_records_what_there_was(start: Start, checked: Checked, number: signal.Signals) -> None:
    run = start("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(4)
    run.signal(number)
    ended = run.end()
    assert ended.status == 130, ended.output
    assert "Traceback" not in ended.output
    summary = checked(ended.folder).summary
    assert summary["interrupted"]
    assert summary["requests"]["completed"] > 10
    assert 3 < summary["duration_s"] < 60
    run.nothing_is_left()


def test_interrupted_before_it_began_it_leaves_nothing(start: Start) -> None:
    run = start("duration_s=60")
    run.says("starting servers")
    run.signal(signal.SIGINT)
    assert run.end().status == 130
    run.nothing_is_left()


def test_killed_it_leaves_a_record_of_what_had_happened_and_nothing_else(start: Start) -> None:
    run = start("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(5)
    run.signal(signal.SIGKILL)
    ended = run.end()
    record = RunRecord(ended.folder, unfinished=True)
    requests, instances = record.requests(), record.instances()
    assert requests.finish_s.max() > 2
    assert set(instances.instance) == {"prefill-0", "prefill-1", "decode-0", "decode-1"}
    assert (instances.groupby("instance").time_s.max() > 2).all() and instances.power_w.notna().all()
    assert record.provenance["source"] == "live"
    run.nothing_is_left()


def test_a_killed_server_takes_only_its_requests_with_it(start: Start, checked: Checked) -> None:
    run = start("duration_s=6", "policy=voltana")
    run.says("of 6 s:")
    run.goes_on(2)
    os.kill(run.child("voltana.live.servers.emulated --config .*decode-1.json"), signal.SIGKILL)
    ended = run.end()
    assert ended.status == 3, ended.output
    last = ended.output.strip().splitlines()[-1]
    assert last == "voltana-live: error: a server died, decode-1: it ended by signal 9"
    record = checked(ended.folder)
    requests = record.requests()
    failed = requests[requests.status != "completed"]
    assert 0 < len(failed) < len(requests) / 2
    assert record.summary["live"]["failures"]
    assert record.summary["live"]["servers_ended"] == {"decode-1": "it ended by signal 9"}
    assert (requests[requests.arrival_s > 5.5].status == "completed").all()
    assert not record.interrupted and record.summary["energy_j"]["total"] is None
    after = rows_of(record, "decode-1")[-1]
    assert (after.batch_size, after.clock_mhz, after.power_w) == (0, None, None)
    run.nothing_is_left()


def test_without_its_client_it_ends(start: Start, checked: Checked) -> None:
    run = start("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(2)
    os.kill(run.child("voltana.live.run.load"), signal.SIGKILL)
    ended = run.end()
    assert ended.status == 3
    assert "the load client ended before its requests had ended" in ended.output
    summary = checked(ended.folder).summary
    assert summary["interrupted"] and summary["requests"]["failed"] > 0
    run.nothing_is_left()


def test_a_frozen_server_takes_only_its_requests_with_it(start: Start, checked: Checked) -> None:
    """Stopped by SIGSTOP it holds its connections and says nothing; nobody waits for it longer than for `frozen_s`."""
    run = start("duration_s=10", "policy=voltana", "frozen_s=3")
    run.says("of 10 s:")
    run.goes_on(2)
    os.kill(run.child("voltana.live.servers.emulated --config .*decode-1.json"), signal.SIGSTOP)
    ended = run.end(within_s=60.0)
    assert ended.status == 3, ended.output
    last = ended.output.strip().splitlines()[-1]
    assert last == "voltana-live: error: a server died, decode-1: it said nothing for 3 s"
    record = checked(ended.folder)
    requests = record.requests()
    assert 0 < sum(requests.status != "completed") < 0.75 * len(requests)
    assert (requests[requests.arrival_s > 9.0].status == "completed").all()
    run.nothing_is_left()


def test_without_an_answer_of_the_owner_of_clocks_it_ends(attach: Start, checked: Checked) -> None:
    """It was stopped: its socket stays open. The harness ends by itself, and the owner with it."""
    run = attach("duration_s=60")
    run.says("of 60 s:")
    run.goes_on(2)
    os.kill(run.child("voltana.live.clocks.command"), signal.SIGSTOP)
    ended = run.end(within_s=60.0)
    assert ended.status == 3, ended.output
    assert "control: the owner of clocks is gone (it has not answered for 10 s); the record ends" in ended.output
    assert checked(ended.folder).summary["interrupted"]
    run.nothing_is_left()


CASES = Path(__file__).parents[2] / "cases" / "policies"


@pytest.mark.parametrize(
    ("part", "overrides", "case", "says"),
    [
        (
            "prefill_controller",
            ["~policy.prefill_controller.clock_mhz"],
            "raises_later",
            r"prefill-\d at .* 'two' \(",
        ),
        ("prefill_router", [], "routes_backwards_later", r"for request 5 that arrived at .* answered -1, allowed: "),
    ],
    ids=["controller", "router"],
)
def test_a_policy_that_fails_ends_the_run_and_the_record(
    start: Start,
    checked: Checked,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    overrides: list[str],
    case: str,
    says: str,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CASES))
    run = start("duration_s=60", f"policy.{part}={{_target_: {case}.Mine}}", "policy.name=mine", *overrides)
    ended = run.end()
    assert ended.status == 2, ended.output
    last = ended.output.splitlines()[-1]
    assert last.startswith(f"voltana-live: error: run {ended.folder}: policy mine: {part} ({case}.Mine)")
    assert re.search(says, last)
    assert ("in decide" in ended.output) == (case == "raises_later")
    summary = checked(ended.folder).summary
    assert summary["interrupted"] and summary["duration_s"] < 30
    assert (summary["live"]["decision_errors"] > 0) == (part == "prefill_controller")
    run.nothing_is_left()

"""The console scripts as a user meets them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import voltana.analysis.commands
import voltana.sim.run.commands
from voltana.prediction.profile import read_profile
from voltana.record import CONFIG, SUMMARY, RunRecord, find_records

SMALL = ("rps=20", "duration_s=4")


def await_path(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run a console script's function in a folder of its own."""

    def go(command: Callable[[], None], *arguments: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
        capfd.readouterr()
        try:
            command()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Outcome(status, *capfd.readouterr())

    return go


Call = Callable[..., Outcome]


def test_a_run_prints_its_numbers_and_where_its_record_is(call: Call, tmp_path: Path) -> None:
    outcome = call(voltana.sim.run.commands.simulate, *SMALL, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0
    summary = RunRecord(tmp_path / "run").summary
    assert f"{summary['energy_j']['total'] / 1e3:.1f} kJ" in outcome.out
    assert f"{summary['requests']['completed']} completed, 0 failed" in outcome.out
    assert outcome.out.rstrip().endswith("run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.yaml",
        "instances.parquet",
        "provenance.json",
        "requests.parquet",
        "summary.json",
    ]


TRACE = """input_tokens,output_tokens,arrival_s
100,20,1700000000
100,0,1700000001
100,20,1700000002
100,20,1700000004
"""
REPLAY = ("trace=file", "trace.path=trace.csv", "arrival=timestamps", "duration_s=null", "hydra.run.dir=run")


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_replay_states_what_it_replays(call: Call, tmp_path: Path, engine: str) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    outcome = call(voltana.sim.run.commands.simulate, *REPLAY, f"engine={engine}")
    assert outcome.status == 0, outcome.err
    assert " ".join(outcome.out.split()).startswith(
        "policy voltana, the trace's 0.5 requests/s, seed 13 "
        "arrivals timestamps: 3 requests in 4.0 s, 0.5/s, then the trace ended "
        "times counted from 1700000000 "
        "rows skipped 1 of 4: output_tokens is 0 (first in line 3) "
        "requests 3 completed, 0 failed "
    )
    record = RunRecord(tmp_path / "run")
    assert record.requests().arrival_s.to_list() == [0.0, 2.0, 4.0]
    assert record.summary["arrivals"] == {
        "process": "timestamps",
        "requested_rps": None,
        "ended_by": "trace",
        "rows_read": 4,
        "skipped": [{"reason": "output_tokens is 0", "count": 1, "first_line": 3}],
        "ignored": [],
        "counted_from": "1700000000",
        "count": 3,
        "span_s": 4.0,
        "rate_per_s": 0.5,
    }


def test_a_strict_replay_stops_at_the_first_row_that_cannot_be_used(call: Call, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    outcome = call(voltana.sim.run.commands.simulate, *REPLAY, "trace.strict=true")
    assert outcome.status == 2
    assert outcome.err == (
        "voltana-sim: error: trace.csv:3: output_tokens: found '0', allowed: an integer from 1 to 1000000000\n"
    )


def test_columns_of_any_name_can_be_stated(call: Call, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("t,Prompt length,gen\n0,100,20\n500,100,20\n")
    named = ("trace.columns.input_tokens=Prompt length", "trace.columns.output_tokens=gen", "trace.columns.arrival_s=t")
    outcome = call(voltana.sim.run.commands.simulate, *REPLAY, *named)
    assert outcome.status == 2
    assert "trace.csv:2: t: found '0', allowed: times in a unit that trace.time_unit states" in outcome.err
    assert call(voltana.sim.run.commands.simulate, *REPLAY, *named, "trace.time_unit=ms").status == 0
    assert RunRecord(tmp_path / "run").requests().arrival_s.to_list() == [0.0, 0.5]


@pytest.mark.slow
def test_what_was_asked_for_is_recorded_beside_what_arrived(call: Call, tmp_path: Path) -> None:
    outcome = call(voltana.sim.run.commands.simulate, *SMALL, "arrival=uniform", "hydra.run.dir=run")
    assert "voltana, 20 requests/s, seed 13" in outcome.out
    arrivals = RunRecord(tmp_path / "run").summary["arrivals"]
    assert arrivals.pop("rate_per_s") == pytest.approx(20)
    assert arrivals.pop("span_s") == pytest.approx(3.95)
    assert arrivals == {"process": "uniform", "requested_rps": 20, "ended_by": "duration_s", "count": 80}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("rpz=3", "rpz"),
        ("rps=-3", "rps: found -3, allowed: greater than 0"),
        ("rps=fast", "rps: found 'fast', allowed: a valid number"),
        ("duration_s=0", "duration_s: found 0, allowed: greater than 0"),
        ("duration_s=1e-9", "duration_s: no request arrives within it"),
        (
            "duration_s=null",
            "duration_s: found null, allowed: a number > 0; null with requests=N, or with a trace that",
        ),
        ("arrival=timestamps", "arrival=timestamps: found 'a trace without arrival times'"),
        ("arrival=timestamps arrival.speedup=0", "arrival.speedup: found 0, allowed: a number > 0"),
        ("trace=file trace.path=bad.csv trace.repeat=true arrival=timestamps", "trace.repeat: found True, "),
        ("policy=voltage", "static_max"),
        ("trace=file", "trace.path"),
        ("trace=file trace.path=nowhere.csv", "nowhere.csv"),
        ("trace=file trace.path=bad.csv", "bad.csv:3"),
        (
            "policy=static_max policy.decode_controller.clock_mhz=1000",
            "policy.decode_controller.clock_mhz: found 1000, ",
        ),
        ("policy.prefill_controller.levels_mhz=[900,1410,9]", "policy.prefill_controller.levels_mhz: found 9, "),
        ("policy.prefill_controller.margin=2", "policy.prefill_controller.margin: found 2, "),
        ("+policy.prefill_controller.margn=2", "policy.prefill_controller.margn: unknown to EcoFreq, allowed: "),
        ("policy.decode_router._target_=no.such.Router", "policy.decode_router._target_: found 'no.such.Router'"),
        ("serving.decode.max_requests=0", "serving.decode.max_requests: found 0, allowed: greater than or equal to 1"),
        ("serving.decode.kv_tokens=999999999", "serving.decode.kv_tokens: found 999999999, allowed: up to "),
        ("serving.prefill.max_tokens=-1", "serving.prefill.max_tokens: found -1, "),
        ("model=qwen3_32b cluster.gpus_per_host=3", "cluster.gpus_per_host: found 3, allowed: a multiple of"),
        ("model=qwen3_32b model.tp=1 gpu.memory_gib=40", "model.tp: found 1, whose GPUs hold 34 GiB"),
        ("slo.ttft_ms=0", "slo.ttft_ms: found 0, allowed: greater than 0"),
        ("cluster.decode_instances=0", "cluster.decode_instances: found 0, "),
        ("cluster.decode_instances=1.5", "cluster.decode_instances: found 1.5, "),
        ("predictor=gone.json", "gone.json"),
        ("engine=warp", "engine: found 'warp', allowed: "),
        ("seed=-1", "seed: found -1, "),
    ],
)
def test_bad_input_is_one_line_and_status_2(call: Call, tmp_path: Path, overrides: str, says: str) -> None:
    (tmp_path / "bad.csv").write_text("input_tokens,output_tokens\n10,10\n10,4.5\n")
    outcome = call(voltana.sim.run.commands.simulate, *SMALL, "hydra.run.dir=run", *overrides.split())
    assert outcome.status == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("voltana-sim: error: ")
    assert not (tmp_path / "run" / SUMMARY).exists()


@pytest.mark.slow
def test_a_sweep_runs_every_combination_and_resumes(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", *SMALL, f"hydra.sweep.dir={tmp_path}/sweep", "policy=static_max,static_1005")
    assert call(voltana.sim.run.commands.simulate, *sweep, "seed=1,2").status == 0
    records = find_records([tmp_path / "sweep"])
    found = [(record.config["policy"]["name"], record.config["seed"]) for record in records]
    assert found == [("static_max", 1), ("static_max", 2), ("static_1005", 1), ("static_1005", 2)]

    written = {record.folder: (record.folder / SUMMARY).stat().st_mtime_ns for record in records}
    (records[2].folder / SUMMARY).unlink()
    again = call(voltana.sim.run.commands.simulate, *sweep, "seed=1,2")
    assert "3 of them are there already" in again.err
    changed = [f for f, time_ns in written.items() if (f / SUMMARY).stat().st_mtime_ns != time_ns]
    assert changed == [records[2].folder]


@pytest.mark.slow
def test_a_sweep_finishes_the_good_runs_and_names_the_bad(call: Call, tmp_path: Path) -> None:
    outcome = call(voltana.sim.run.commands.simulate, "-m", *SMALL, f"hydra.sweep.dir={tmp_path}/sweep", "rps=-1,20")
    assert outcome.status == 2
    assert "rps=-1: rps: found -1, allowed: greater than 0" in outcome.err
    assert len(find_records([tmp_path / "sweep"])) == 1


@pytest.mark.slow
def test_the_same_run_is_not_run_again_and_another_does_not_replace_it(call: Call, tmp_path: Path) -> None:
    assert call(voltana.sim.run.commands.simulate, *SMALL, "hydra.run.dir=run").status == 0
    written_ns = (tmp_path / "run" / SUMMARY).stat().st_mtime_ns
    again = call(voltana.sim.run.commands.simulate, *SMALL, "hydra.run.dir=run")
    assert again.status == 0 and "run: this run is there already; overwrite=true runs it again" in again.err
    assert (tmp_path / "run" / SUMMARY).stat().st_mtime_ns == written_ns
    other = call(voltana.sim.run.commands.simulate, *SMALL, "rps=21", "hydra.run.dir=run")
    assert other.status == 2 and other.err.count("\n") == 1
    assert "run/config.yaml: found the finished record of another run (rps=20); allowed: another folder" in other.err
    assert call(voltana.sim.run.commands.simulate, *SMALL, "rps=21", "hydra.run.dir=run", "overwrite=true").status == 0
    assert RunRecord(tmp_path / "run").config["rps"] == 21


def test_a_run_whose_trace_or_predictor_changed_is_run_again(call: Call, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input_tokens,output_tokens\n10,10\n")
    words = ("trace=file", "trace.path=t.csv", "policy=static_max", *SMALL, "hydra.run.dir=run")
    first = call(voltana.sim.run.commands.simulate, *words)
    (tmp_path / "t.csv").write_text("input_tokens,output_tokens\n10,100\n")
    again = call(voltana.sim.run.commands.simulate, *words)
    assert (first.status, again.status) == (0, 0) and "there already" not in again.err
    assert (RunRecord(tmp_path / "run").requests().output_tokens == 100).all()


@pytest.mark.slow
def test_two_runs_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    script = "from voltana.sim.run.commands import simulate; simulate()"
    command = [sys.executable, "-c", script, "duration_s=100000", "policy=static_max", "hydra.run.dir=run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        await_path(tmp_path / "run" / CONFIG)
        second = subprocess.run([*command, "rps=20"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        first.send_signal(signal.SIGINT)
    assert second.returncode == 2
    assert re.search(
        r"run: process \d+ on .* is writing its record there; allowed: a folder for each run$", second.stderr
    )
    assert second.stderr.count("\n") == 1
    assert RunRecord(tmp_path / "run").config["rps"] == 75


@pytest.mark.slow
def test_a_killed_run_can_be_looked_at_and_is_left_out(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(voltana.sim.run.commands.simulate, *SMALL, "policy=static_max", "hydra.run.dir=runs/whole").status == 0
    script = "from voltana.sim.run.commands import simulate; simulate()"
    command = [sys.executable, "-c", script, "duration_s=100000", "policy=static_max", "hydra.run.dir=runs/killed"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        await_path(tmp_path / "runs" / "killed" / "instances.journal")
        time.sleep(0.5)
        process.kill()
    left = RunRecord(tmp_path / "runs" / "killed", unfinished=True)
    assert len(left.requests()) > 100 and len(left.instances()) > 100
    compared = call(voltana.analysis.commands.compare, "runs=runs", "baseline=static_max")
    assert compared.status == 0 and "Left out, unfinished: runs/killed." in compared.out
    alone = call(voltana.analysis.commands.compare, "runs=runs/killed")
    assert alone.status == 2 and "runs/killed is unfinished" in alone.err
    window = f"window=[0,{left.instances().time_s.max() / 50}]"
    drawn = call(voltana.analysis.commands.plot, "runs=runs/killed", "figure=timeline", "out=cut.png", window)
    assert drawn.status == 0, drawn.err
    again = call(voltana.sim.run.commands.simulate, *SMALL, "policy=static_max", "hydra.run.dir=runs/killed")
    assert again.status == 0


@pytest.mark.slow
def test_runs_of_another_sweep_are_kept_and_told(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", "duration_s=4", "policy=static_max", "hydra.sweep.dir=sweep")
    assert call(voltana.sim.run.commands.simulate, *sweep, "rps=20,21").status == 0
    clash = call(voltana.sim.run.commands.simulate, *sweep, "rps=30,20")
    assert clash.status == 2
    assert "sweep/0/config.yaml: found the finished record of another run of the sweep duration_s=4" in clash.err
    assert call(voltana.sim.run.commands.simulate, *sweep, "rps=20,21,22").status == 0
    mixed = call(voltana.analysis.commands.compare, "runs=sweep")
    assert "Runs of 2 sweeps are mixed here: duration_s=4 policy=static_max rps=20,21 (2 runs); " in mixed.out
    assert call(voltana.sim.run.commands.simulate, *sweep, "rps=20,21,22", "overwrite=true").status == 0
    assert "sweeps are mixed" not in call(voltana.analysis.commands.compare, "runs=sweep").out


@pytest.mark.slow
def test_what_is_there_already_is_known_under_any_launcher(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", *SMALL, "policy=static_max", "seed=1,2", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    assert "there already" not in call(voltana.sim.run.commands.simulate, *sweep).err
    again = call(voltana.sim.run.commands.simulate, *sweep)
    assert again.status == 0 and again.err.count("this run is there already") == 2
    assert RunRecord(tmp_path / "sweep" / "0").provenance["sweep"]["overrides"][-1] == "seed=1,2"


LAUNCHED = """
class Killed:
    def __init__(self, clocks_mhz, *, clock_mhz): pass
    def decide(self, load):
        import os
        os.kill(os.getpid(), 9)


class Raises:
    def __init__(self, clocks_mhz, *, clock_mhz): pass
    def decide(self, load):
        raise RuntimeError("out of ideas")
"""


@pytest.mark.slow
def test_a_run_that_fails_takes_no_other_with_it(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy raises, one kills its process; the runs beside them and after them end."""
    (tmp_path / "launched.py").write_text(LAUNCHED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    target = "policy.decode_controller._target_=launched.Raises,launched.Killed,voltana.policies.static.StaticClock"
    words = (*SMALL, "policy=static_max", target, "seed=1,2", "hydra.sweep.dir=sweep")
    outcome = call(voltana.sim.run.commands.simulate, "-m", *words)
    assert outcome.status in (1, 2)
    assert outcome.err.count("\nfailed: ") == 4
    assert outcome.err.count("its process died") == 2 and outcome.err.count("(sweep/") == 2
    assert "out of ideas" in (tmp_path / "sweep" / "0" / "error.log").read_text()
    assert [record.folder.name for record in find_records([tmp_path / "sweep"])] == ["4", "5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra.job.chdir=true"], "hydra.job.chdir: found true, allowed: false"),
        (["-m", "hydra.job.chdir=true"], "hydra.job.chdir: found true, allowed: false"),
        (["experiment=modules"], "experiment: found modules for a single run, allowed: with -m"),
        (["overwrite=maybe"], "overwrite: found 'maybe', allowed: true or false"),
        (["hydra.run.dir=/proc/run"], "/proc/run"),
    ],
)
def test_what_cannot_be_run_so_is_one_line(call: Call, words: list[str], says: str) -> None:
    outcome = call(voltana.sim.run.commands.simulate, *words, *SMALL)
    assert outcome.status == 2 and says in outcome.err and outcome.err.count("\n") == 1


def test_a_damaged_cached_predictor_is_fitted_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = ("profile.clocks_mhz=[1005,1410]", "profile.decode.max_batch=32", "policy=voltana", *SMALL)
    assert call(voltana.sim.run.commands.simulate, *quick, "hydra.run.dir=a").status == 0
    (kept,) = tmp_path.rglob("ecopred-*.json")
    whole = kept.read_text()
    kept.write_text(whole[:100])
    assert call(voltana.sim.run.commands.simulate, *quick, "hydra.run.dir=b").status == 0
    assert kept.read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize("out", ["/dev/full", "/proc/out.csv"])
def test_output_that_cannot_be_written_is_one_line(call: Call, tmp_path: Path, out: str) -> None:
    quick = ("profile.clocks_mhz=[1005,1410]", "profile.decode.max_batch=32", "profile.prefill.samples=8")
    assert call(voltana.sim.run.commands.profile, "out=table.csv", *quick).status == 0
    for command, words in (
        (voltana.sim.run.commands.profile, quick),
        (voltana.analysis.commands.fit, ("table=table.csv",)),
    ):
        outcome = call(command, f"out={out}", *words)
        assert outcome.status == 2 and out in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_valid_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = "from voltana.sim.run.commands import simulate; simulate()"
    arguments = ["duration_s=100000", "rps=50", "policy=static_max", f"hydra.run.dir={folder}"]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True) as process:
        await_path(folder / CONFIG)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    record = RunRecord(folder)
    assert record.summary["interrupted"] is True
    requests = record.requests()
    assert (requests.status == "unfinished").sum() == record.summary["requests"]["unfinished"] > 0
    assert len(record.instances()) > 0


@pytest.mark.slow
def test_an_interrupted_sweep_stops_at_once_and_goes_on_later(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    script = "from voltana.sim.run.commands import simulate; simulate()"
    arguments = ["-m", "policy=static_max", "rps=50", "seed=1,2,3", f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "-c", script, *arguments, "duration_s=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        await_path(folder / "0" / CONFIG)
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert all(record.summary["interrupted"] for record in find_records([folder]))
    again = call(voltana.sim.run.commands.simulate, *arguments, "duration_s=4")
    assert again.status == 0
    assert [record.summary["interrupted"] for record in find_records([folder])] == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.3, 0.6])
def test_interrupting_while_processes_start_is_quiet(tmp_path: Path, delay_s: float) -> None:
    script = "from voltana.sim.run.commands import simulate; simulate()"
    words = ["-m", "policy=static_max", "seed=1,2,3,4", "hydra.sweep.dir=sweep", "duration_s=100000"]
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None and process.stderr.readline().startswith("4 runs on ")
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, err = process.communicate(timeout=30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and err.splitlines() == ["voltana-sim: interrupted"], err


@pytest.mark.slow
def test_profile_then_fit_then_use_the_predictor(call: Call, tmp_path: Path) -> None:
    profiled = call(voltana.sim.run.commands.profile, "out=table.csv", "profile.clocks_mhz=[1005,1410]")
    assert profiled.status == 0 and "table.csv" in profiled.out
    samples = read_profile(tmp_path / "table.csv")
    assert {sample.clock_mhz for sample in samples} == {1005, 1410}
    fitted = call(voltana.analysis.commands.fit, "table=table.csv", "out=mine.json", "figure=drawn/mine.png")
    assert fitted.status == 0 and "MAPE" in fitted.out
    assert (tmp_path / "drawn" / "mine.png").stat().st_size > 20_000
    run = call(voltana.sim.run.commands.simulate, *SMALL, "predictor=mine.json", "hydra.run.dir=run")
    assert run.status == 0


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (voltana.analysis.commands.fit, ["table=none.csv"], "none.csv: cannot be read"),
        (voltana.analysis.commands.fit, ["table=bad.csv"], "bad.csv:2"),
        (voltana.analysis.commands.fit, ["profil=bad.csv"], "profil"),
        (
            voltana.analysis.commands.fit,
            ["figure=lines.gif"],
            "figure: found lines.gif, allowed: a path that ends in .png",
        ),
        (voltana.sim.run.commands.profile, ["profile.clocks_mhz=[1000,1410]"], "profile.clocks_mhz: found 1000"),
        (voltana.sim.run.commands.profile, ["profile.clocks_mhz=[1005]"], "profile.clocks_mhz"),
        (
            voltana.sim.run.commands.profile,
            ["profile.prefill.tokens=[20,10]"],
            "profile.prefill.tokens: found [20, 10]",
        ),
        (voltana.sim.run.commands.profile, ["profile.noise=-1"], "profile.noise: found -1"),
    ],
)
def test_profile_and_fit_refuse_bad_input(
    call: Call, tmp_path: Path, command: Callable[[], None], arguments: list[str], says: str
) -> None:
    header = "phase,clock_mhz,batch_size,tokens,latency_s,energy_j"
    (tmp_path / "bad.csv").write_text(f"{header}\nprefill,1005,1,100,-0.1,\n")
    outcome = call(command, *arguments)
    assert outcome.status == 2
    assert says in outcome.err and outcome.err.count("\n") == 1

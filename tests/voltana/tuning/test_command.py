"""`voltana-tune` with Optuna, on a simulated cluster."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.record import RunRecord
from voltana.tuning.command import main
from voltana.tuning.study import STUDY

SPACE = "space={decode_controller.margin: 0..0.6, decode_controller.levels_mhz: [[knee, max], [0.713, max]]}"
SMALL = ("policy=voltana", "rps=40", "duration_s=2", "seeds=2", SPACE)


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[str, str, object]:
    monkeypatch.setattr(sys, "argv", ["voltana-tune", *words])
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    told = capsys.readouterr()
    return told.out, told.err, status


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_goes_on_and_ends_in_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tune"
    words = (*SMALL, f"out={out}", "keep={joint_attainment: 0}")
    told, err, status = command(capsys, monkeypatch, *words, "trials=2")
    assert (status, err.count("energy_j.total")) == (0, 2), err
    first = rows(out)
    assert first[0]["trial"] == "as_it_is" and len(first) == 3
    before = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}

    told, err, status = command(capsys, monkeypatch, *words, "trials=4", "name=mine")
    assert (status, err.count("energy_j.total")) == (0, 2), err
    assert [row | {"outcome": ""} for row in rows(out)[:3]] == [row | {"outcome": ""} for row in first]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "front.png").read_bytes().startswith(b"\x89PNG") and "policy=voltana,mine" in told

    preset = yaml.safe_load((out / "policy" / "mine.yaml").read_text())
    (taken,) = (line.split()[0] for line in told.splitlines() if " * " in line)
    record = RunRecord(out / "runs" / taken / "seed=1")
    assert preset == {**record.config["policy"], "name": "mine"}
    assert all(isinstance(clock, int) for clock in preset["decode_controller"]["levels_mhz"])
    words_of_a_run = ["--config-dir", str(out), "policy=mine", "rps=40", "duration_s=2", "seed=1"]
    voltana_sim = str(Path(sys.executable).parent / "voltana-sim")
    subprocess.run([voltana_sim, *words_of_a_run, f"hydra.run.dir={tmp_path / 'run'}"], check=True, capture_output=True)
    again = RunRecord(tmp_path / "run")
    assert again.config == {**record.config, "policy": preset}
    assert again.summary["energy_j"] == record.summary["energy_j"]
    row = next(row for row in rows(out) if row["trial"] == taken)
    energies = [RunRecord(out / "runs" / taken / f"seed={seed}").summary["energy_j"]["total"] for seed in (1, 2)]
    assert float(row["energy_j.total"]) == pytest.approx(sum(energies) / 2)
    assert row["outcome"] == "front"

    _, err, status = command(capsys, monkeypatch, *words[:-1], "trials=4", "objective=mean_power_w")
    assert status == 2 and "found the study of another objective" in err
    _, err, status = command(capsys, monkeypatch, *words[:1], "rps=20", *words[2:], "trials=4")
    assert status == 2 and f"out: found runs of something else in {out} (rps=40), allowed: another folder" in err


@pytest.mark.slow
def test_what_was_under_way_is_taken_up_with_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that was killed between two trials: the journal ends where they had begun."""
    out = tmp_path / "tune"
    words = (*SMALL, f"out={out}", "trials=2")
    command(capsys, monkeypatch, *words)
    first = rows(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    lines = (out / STUDY).read_text().splitlines(keepends=True)
    told = next(number for number, line in enumerate(lines) if '"seeds"' in line)
    (out / STUDY).write_text("".join(lines[:told]))
    _, err, status = command(capsys, monkeypatch, *words)
    assert (status, err.count("energy_j.total")) == (0, 2), err
    assert {(row["trial"], row["energy_j.total"]) for row in rows(out)} == {
        (row["trial"], row["energy_j.total"]) for row in first
    }
    assert {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")} == before


@pytest.mark.slow
def test_a_point_that_the_policy_refuses_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL[:-1], f"out={tmp_path / 'tune'}", "trials=2", "seeds=1"]
    words.remove("seeds=2")
    told, _, status = command(capsys, monkeypatch, *words, "space={decode_controller.margin: [0.1, 7]}")
    assert status == 0 and "The first failure: " in told and "margin" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "space: found none, allowed: what may be changed"),
        ([SPACE, "seed=4"], "seed=4: found a seed, allowed: seeds=3, which has the seeds 1 to 3"),
        ([SPACE, "policy=voltana,static_max"], "overrides: found a sweep, allowed: one configuration"),
        ([SPACE, "objective=[]"], "objective: found [], allowed: one key of summary.json and more, each once"),
        ([SPACE, "objective=3"], "objective: found 3, allowed: null, a key of summary.json"),
        ([SPACE, "name=voltana"], "name: found 'voltana', allowed: letters, digits and underscores"),
        ([SPACE, "policy=static_max"], "space: found 'decode_controller.margin', allowed: keys of the policy: "),
        ([SPACE, "trials=0"], "trials: found 0, allowed: a whole number from 1"),
    ],
)
def test_bad_words_name_the_key(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err, status = command(capsys, monkeypatch, *words)
    assert status == 2
    assert err.startswith("voltana-tune: error: ") and message in err and err.count("\n") == 1, err


def test_help_tells_the_keys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: Any = command(capsys, monkeypatch, "--help")
    assert all(f"{key}=" in told[0] for key in ("space", "objective", "keep", "trials", "seeds", "name", "out"))

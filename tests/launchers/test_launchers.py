"""Hydra's other launchers and a sweeper that searches, beside our own launcher.

They run only where VOLTANA_LAUNCHERS names an environment that holds them and this project, as `make test-launchers`
makes one.
"""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from voltana.record import SUMMARY, RunRecord, find_records

FOLDER = os.environ.get("VOLTANA_LAUNCHERS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VOLTANA_LAUNCHERS names no environment with launchers")

SMALL = ("-m", "policy=voltana", "duration_s=2", "hydra.sweep.dir=runs")


def sim(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(str(FOLDER)).absolute() / "bin" / "voltana-sim"), *SMALL, *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_other_launchers_go_on_where_they_stopped_and_lose_no_run(launcher: str, tmp_path: Path) -> None:
    first = sim(tmp_path, f"hydra/launcher={launcher}", "rps=10,20")
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"runs/*/{SUMMARY}")}
    assert len(before) == 2
    second = sim(tmp_path, f"hydra/launcher={launcher}", "rps=10,20,-1,30")
    assert second.returncode != 0 and "rps: found -1" in second.stderr + second.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(record.config["rps"] for record in find_records([tmp_path / "runs"])) == [10, 20, 30]


@pytest.mark.parametrize("launcher", ["processes", "joblib"])
def test_a_sweeper_that_searches_is_told_what_it_asked_for(launcher: str, tmp_path: Path) -> None:
    searched = sim(
        tmp_path,
        "hydra/sweeper=optuna",
        f"hydra/launcher={launcher}",
        "rps=20",
        "objective=[energy_j.total,joint_attainment]",
        "hydra.sweeper.direction=[minimize,maximize]",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
        "policy.prefill_controller.levels_mhz=choice([1005],[1410])",
    )
    assert searched.returncode == 0, searched.stderr
    records = [RunRecord(path.parent) for path in tmp_path.glob(f"runs/*/{SUMMARY}")]
    assert len(records) == 4
    told = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())["solutions"]
    measured = {(record.summary["energy_j"]["total"], record.summary["joint_attainment"]) for record in records}
    assert {tuple(each["values"]) for each in told} <= measured

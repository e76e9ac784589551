"""Runs in a tracker, with the real packages, on this machine alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from voltana.analysis import commands, trackers
from voltana.errors import UserError

WriteRun = Callable[..., Path]


@pytest.fixture(name="report")
def _report(
    tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Run voltana-report on two runs with a tracker, in a folder of its own; give what it prints."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_run("runs/0", "static_max", 200, instances=[(0.0, "decode-0", 1410, 1, 300.0)])
    write_run("runs/1", "voltana", 150)

    def run(tracker: str) -> str:
        monkeypatch.setattr(sys, "argv", ["voltana-report", "runs=runs", f"tracker={tracker}"])
        commands.report()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_mlflow(report: Callable[[str], str], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert "Logged 2 runs to mlflow (file://" in report("mlflow")
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (experiment,) = (each for each in client.search_experiments() if each.name == trackers.PROJECT)
    runs = {run.data.params["policy.name"]: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["voltana"].data.metrics["energy_j.total"] == 150_000
    files = {name: {each.path for each in client.list_artifacts(run.info.run_id)} for name, run in runs.items()}
    assert files == {"static_max": {"timeline.png", "report.html"}, "voltana": {"report.html"}}


@pytest.mark.slow
def test_wandb(report: Callable[[str], str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    assert "Logged 2 runs to wandb (offline, in ./wandb" in report("wandb")
    offline = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    stored = [path.name for run in offline for path in run.rglob("*.*")]
    assert sum(name.endswith(".wandb") for name in stored) == 2
    assert sum(name.startswith("timeline") for name in stored) == 1
    assert sum(name.startswith("report") for name in stored) == 2
    told = b"".join(path.read_bytes() for run in offline for path in run.glob("*.wandb"))
    assert b"energy_per_request_j" in told and b"static_max" in told


def test_another_tracker_is_refused() -> None:
    with pytest.raises(UserError, match="tracker: found mine, allowed: wandb, mlflow, null"):
        trackers.tracker_option("mine")
    assert trackers.tracker_option(None) is None


def test_one_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voltana.app.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracker=wandb needs wandb, allowed: after pip install 'voltana\[wandb\]'"):
        trackers.tracker_option("wandb")

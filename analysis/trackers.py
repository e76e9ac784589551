"""Runs in an experiment tracker: summary, timeline and report of each, on this machine unless the tracker is told else.

`wandb` writes to `./wandb` and sends nothing (`wandb sync` does); with `WANDB_MODE=online` it sends. `mlflow` writes to
the folder `./mlruns`, or where `MLFLOW_TRACKING_URI` says. Both take a run as their run, with the sweep it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from voltana.analysis.runs import Run, RunSet
from voltana.app.extras import require
from voltana.app.progress import Progress
from voltana.errors import UserError
from voltana.record import flatten

PROJECT = "voltana"
_LONGEST_VALUE = 500
"""Of a configuration value in MLflow, which takes no longer ones."""


class Tracked(NamedTuple):
    """What a tracker is given of a run."""

    name: str
    group: str
    config: Mapping[str, Any]
    numbers: Mapping[str, float]
    files: tuple[Path, ...]
    """Its timeline, where its instances were recorded, then the report."""


def tracker_option(found: object) -> str | None:
    """The `tracker` option: one that is installed, or none.

    Raises:
        UserError: there is no such tracker, or it is not installed.
    """
    if found is None:
        return None
    if not isinstance(found, str) or found not in _LOG:
        raise UserError(f"tracker: found {found}, allowed: {', '.join(_LOG)}, null")
    require(f"tracker={found}", found)
    return found


def track(tracker: str, runs: RunSet, page: Path) -> str:
    """Log every run, with the page about all of them.

    Args:
        tracker: a key that `tracker_option` allows.
        runs: what is logged.
        page: their report.

    Returns:
        What was written where, in words.
    """
    with TemporaryDirectory() as folder, Progress(tracker, len(runs.runs)) as progress:
        for number, run in enumerate(runs.runs):
            _LOG[tracker](_tracked(runs, run, Path(folder) / str(number), page))
            progress.step()
    return f"Logged {len(runs.runs)} runs to {tracker} ({_WHERE[tracker]()})"


def _tracked(runs: RunSet, run: Run, folder: Path, page: Path) -> Tracked:
    from voltana.analysis import figures

    drawn = folder / "timeline.png"
    try:
        figures.save(figures.timeline(replace(runs, runs=[run])), drawn)
        files: tuple[Path, ...] = (drawn, page)
    except UserError:  # no instance was recorded
        files = (page,)
    numbers = {
        key: float(value)
        for key, value in flatten(run.record.summary).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    sweep = run.record.provenance.get("sweep")
    name = " ".join([run.policy, *(f"{key}={value}" for key, value in run.setting.items()), f"seed={run.seed}"])
    return Tracked(name, str(sweep["id"]) if sweep else "", run.flat, numbers, files)


def _to_wandb(run: Tracked) -> None:
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    begun = wandb.init(
        project=PROJECT, name=run.name, group=run.group or None, config=dict(run.config), mode=mode, settings=settings
    )
    begun.summary.update(dict(run.numbers))
    for file in run.files:
        shown = wandb.Image(str(file)) if file.suffix == ".png" else wandb.Html(file.read_text(encoding="utf-8"))
        begun.log({file.stem: shown})
    begun.finish()


def _to_mlflow(run: Tracked) -> None:
    import mlflow

    mlflow.set_tracking_uri(_mlflow_store())
    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=run.name, tags={"sweep": run.group} if run.group else None):
        mlflow.log_params({key: str(value)[:_LONGEST_VALUE] for key, value in run.config.items()})
        mlflow.log_metrics(dict(run.numbers))
        for file in run.files:
            mlflow.log_artifact(str(file))


def _mlflow_store() -> str:
    if "MLFLOW_TRACKING_URI" in os.environ:
        return os.environ["MLFLOW_TRACKING_URI"]
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return Path("mlruns").absolute().as_uri()


def _wandb_store() -> str:
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    return "offline, in ./wandb; `wandb sync` sends them" if mode == "offline" else mode


_LOG: Mapping[str, Callable[[Tracked], None]] = {"wandb": _to_wandb, "mlflow": _to_mlflow}
_WHERE: Mapping[str, Callable[[], str]] = {"wandb": _wandb_store, "mlflow": _mlflow_store}

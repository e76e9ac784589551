"""The Hydra launcher of sweeps, `hydra/launcher=processes`: runs side by side, one process per core, and resumable.

Hydra finds its plugins below the package `hydra_plugins`, so that is where the wheel installs this folder.

A run whose record is already in its folder, complete and with the same configuration, is not run again. So a sweep
started once more with the same `hydra.sweep.dir` goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.resolve import resolve


class _Job(NamedTuple):
    label: str
    overrides: list[str]
    config: DictConfig
    values: dict[str, Any]
    folder: Path


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep on `workers` processes (0: one per core)."""

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._context: HydraContext | None = None
        self._config = DictConfig({})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands a launcher; jobs are run by `sim.run`, not by the task function."""
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; the first that was refused raises after the others are done."""
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = [
            self._job(" ".join(o for o in overrides if o not in common), list(overrides), initial_job_idx + i)
            for i, overrides in enumerate(job_overrides)
        ]
        todo = [job for job in jobs if not _done(job)]
        console = Console(stderr=True)
        console.print(f"{len(jobs)} runs on {self._workers} processes", highlight=False)
        if len(todo) < len(jobs):
            console.print(f"{len(jobs) - len(todo)} of them are there already", highlight=False)
        refused = self._run(todo, console)
        console.print(f"records are in {jobs[0].folder.parent}", highlight=False, soft_wrap=True)
        if refused:
            label, error = refused[0]
            more = f" ({len(refused)} of {len(jobs)} runs refused)" if len(refused) > 1 else ""
            raise UserError(f"{label}: {error}{more}")
        return [_job_return(job) for job in jobs]

    def _job(self, label: str, overrides: list[str], number: int) -> _Job:
        assert self._context is not None
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with_number = OmegaConf.create({"hydra": {"job": {"num": number, "id": str(number)}}})
        OmegaConf.set_struct(config, False)
        config.merge_with(with_number)
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        return _Job(label, overrides, config, resolve(config), folder)

    def _run(self, jobs: list[_Job], console: Console) -> list[tuple[str, Exception]]:
        refused: list[tuple[str, Exception]] = []
        workers = max(1, min(self._workers, len(jobs)))
        with _SweepProgress(console, len(jobs)) as report, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            from sim.run import simulate_in_worker

            futures: dict[Future[dict[str, Any]], _Job] = {
                pool.submit(simulate_in_worker, job.values, job.folder): job for job in jobs
            }
            try:
                for future in as_completed(futures):
                    job = futures[future]
                    error = future.exception()
                    if isinstance(error, UserError):
                        refused.append((job.label, error))
                    elif error is not None:
                        raise error
                    report(job.label)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return refused


ConfigStore.instance().store(
    group="hydra/launcher",
    name="processes",
    node={"_target_": "hydra_plugins.voltana.ProcessLauncher", "workers": 0},
    provider="voltana",
)


def _done(job: _Job) -> bool:
    try:
        record = RunRecord(job.folder)
        return record.config == job.values and not record.interrupted
    except UserError:
        return False


def _job_return(job: _Job) -> JobReturn:
    result = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=str(job.folder))
    result.status = JobStatus.COMPLETED
    return result


class _SweepProgress:
    """Shows runs as they end: a bar on a terminal, a line each elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._ended = 0
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("runs", total=total)

    def __enter__(self) -> Callable[[str], None]:
        if self._console.is_terminal:
            self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _advance(self, label: str) -> None:
        self._ended += 1
        self._bar.advance(self._task)
        if not self._console.is_terminal:
            self._console.print(f"[{self._ended}/{self._total}] {label}", markup=False, highlight=False)

"""The Hydra launcher of sweeps, `hydra/launcher=processes`: runs side by side, one process per core, and resumable.

Hydra finds its plugins below the package `hydra_plugins`, so that is where the wheel installs this folder.

A run whose record is already in its folder, finished, with the same configuration and unchanged inputs, is not run
again. So a sweep started once more with the same `hydra.sweep.dir` goes on where it stopped. A run that fails, or whose
process dies, takes no other with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from voltana.app.cli import CHDIR
from voltana.app.objective import Objective, objective_of, objectives
from voltana.app.progress import Progress
from voltana.app.resolve import overwrite_of
from voltana.app.sweeps import sweep_of
from voltana.app.terminal import plain_console
from voltana.errors import RunsCrashedError, UserError
from voltana.record import RunRecord, refuse_another
from voltana.record.provenance import already_there, changed
from voltana.sim.run.jobs import Job, JobComposer
from voltana.sim.run.pool import interrupts_blocked, worker_pool
from voltana.sim.run.worker import Failure, work


class _Job(NamedTuple):
    label: str
    overrides: list[str]
    values: dict[str, Any]
    folder: Path


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep on `workers` processes (0: one per core)."""

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._composer: JobComposer | None = None
        self._config = DictConfig({})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands a launcher; jobs are run by `voltana.sim.run.simulate`, not by the task function."""
        self._config = config
        loader = hydra_context.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        self._composer = composer = JobComposer(loader, config)

        def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str]) -> Job:
            return composer.job(tuple(sweep_overrides))  # Hydra's sweeper looks whether all jobs can be composed

        loader.load_sweep_config = load_sweep_config  # type: ignore[method-assign, assignment]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; those that failed are told after the last one."""
        if self._config.hydra.job.chdir:
            raise UserError(CHDIR)
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        assert self._composer is not None
        jobs = [
            _Job(
                " ".join(word for word in overrides if word not in common),
                list(overrides),
                self._composer.job(tuple(overrides)).values,
                self._composer.folder(tuple(overrides), number),
            )
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        self._composer.save()
        overwrite, sweep = (
            overwrite_of(self._config),
            sweep_of(OmegaConf.to_container(self._config.hydra.overrides, resolve=False)),
        )
        asked = objective_of(self._config)
        console = plain_console(stderr=True, soft_wrap=True)
        console.print(f"{len(jobs)} runs on {self._workers} processes")
        todo = jobs if overwrite else _look_around(jobs, console)
        failures = self._run(todo, partial(work, overwrite=overwrite, sweep=sweep), console)
        console.print(f"records are in {jobs[0].folder.parent}")
        if failures:
            _report(failures, len(jobs), console)
        return [_job_return(job, asked) for job in jobs]

    def _run(self, jobs: list[_Job], run: _Run, console: Console) -> list[tuple[_Job, Failure]]:
        order = {id(job): place for place, job in enumerate(jobs)}
        failures: list[tuple[_Job, Failure]] = []
        with Progress("runs", len(jobs), console) as progress:

            def ended(job: _Job, failure: Failure | None) -> None:
                if failure is not None:
                    failures.append((job, failure))
                progress.step(job.label if failure is None else f"{job.label}: failed")

            while jobs:
                lost = _in_pool(jobs, min(self._workers, len(jobs)), run, ended)
                suspects, jobs = lost[: self._workers], lost[self._workers :]
                for job in suspects:  # those that were running when a process died
                    if _in_pool([job], 1, run, ended):
                        ended(job, Failure("its process died; was it out of memory?", None, bad_input=False))
        return sorted(failures, key=lambda each: order[id(each[0])])


_Run = Callable[[dict[str, Any], Path], Failure | None]


def _in_pool(jobs: list[_Job], workers: int, run: _Run, ended: Callable[[_Job, Failure | None], None]) -> list[_Job]:
    """Run jobs on so many processes; return those that a dying process took with it, in their order."""
    lost: set[int] = set()
    with worker_pool(workers) as pool:
        with interrupts_blocked():
            futures = {pool.submit(run, job.values, job.folder): place for place, job in enumerate(jobs)}
        for future in as_completed(futures):
            try:
                ended(jobs[futures[future]], future.result())
            except BrokenProcessPool:
                lost.add(futures[future])
    return [jobs[place] for place in sorted(lost)]


def _look_around(jobs: list[_Job], console: Console) -> list[_Job]:
    """The jobs still to do; what else is in their folders is told.

    Raises:
        UserError: a folder holds the finished record of another run.
    """
    todo: list[_Job] = []
    outdated: set[str] = set()
    for job in jobs:
        if already_there(job.folder, job.values):
            continue
        todo.append(job)
        outdated.update(_outdated(job))
    if len(todo) < len(jobs):
        console.print(f"{len(jobs) - len(todo)} of them are there already")
    if outdated:
        console.print(
            f"others are there but run again, as what they depend on has changed: {', '.join(sorted(outdated))}"
        )
    return todo


def _outdated(job: _Job) -> list[str]:
    try:
        record = RunRecord(job.folder)
    except UserError:
        return []
    refuse_another(job.folder, job.values)
    return [] if record.interrupted else changed(record)


def _report(failures: list[tuple[_Job, Failure]], jobs: int, console: Console) -> NoReturn:
    """List the runs that failed, and raise."""
    for job, failure in failures:
        log = "" if failure.log is None else f" ({failure.log})"
        console.print(f"failed: {job.label}: {failure.reason}{log}")
    job, failure = failures[0]
    more = f" ({len(failures)} of {jobs} runs failed)" if len(failures) > 1 else ""
    bad_input = all(failure.bad_input for _, failure in failures)
    raise (UserError if bad_input else RunsCrashedError)(f"{job.label}: {failure.reason}{more}")


ConfigStore.instance().store(
    group="hydra/launcher",
    name="processes",
    node={"_target_": "hydra_plugins.voltana.ProcessLauncher", "workers": 0},
    provider="voltana",
)


def _job_return(job: _Job, asked: Objective) -> JobReturn:
    result = JobReturn(overrides=job.overrides, working_dir=str(job.folder))
    result.status = JobStatus.COMPLETED
    result.return_value = objectives(RunRecord(job.folder).summary, asked) if asked else None
    return result

"""The search: Optuna proposes points, simulations tell what they come to."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.objective import Objective, objectives
from voltana.app.resolve import section_in_mhz
from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.record.claim import differing
from voltana.record.provenance import changed
from voltana.sim.run.pool import interrupts_blocked
from voltana.sim.run.worker import work
from voltana.tuning.space import Params, Space, at
from voltana.tuning.trials import Trial, Values, beaten_so_far, wanted_high

if TYPE_CHECKING:
    import optuna

AS_IT_IS = "as_it_is"
STUDY = "study.journal"
RUNS = "runs"
NAME = "voltana"
ASKED = "asked"
"""The study's attribute that tells what is searched."""
SEEDS, WHY = "seeds", "why"
"""Attributes of a trial: what its seeds came to, why it was given up."""


@dataclass(frozen=True)
class Task:
    """What is searched.

    Args:
        values: the configuration, by seed.
        space: parameters.
        objective: what is better or worse.
        out: the folder of study and runs.
    """

    values: Mapping[int, Mapping[str, Any]]
    space: Space
    objective: Objective
    out: Path

    @property
    def policy(self) -> Mapping[str, Any]:
        """The section of the policy as it is."""
        return next(iter(self.values.values()))["policy"]  # type: ignore[no-any-return]

    def label(self, params: Params) -> str:
        """A point's: the same for the same point."""
        if not params:
            return AS_IT_IS
        return hashlib.sha256(json.dumps(dict(params), sort_keys=True).encode()).hexdigest()[:8]

    def folder(self, params: Params, seed: int) -> Path:
        """Of a run."""
        return self.out / RUNS / self.label(params) / f"seed={seed}"

    def run(self, params: Params, seed: int) -> dict[str, Any]:
        """The configuration of a run; the policies of points have names of their own."""
        values = dict(self.values[seed])
        if params:
            policy = section_in_mhz("policy", {**values, "policy": at(values["policy"], self.space, params)})
            values["policy"] = policy | {"name": f"{policy['name']}_{self.label(params)}"}
        return values

    def told(self) -> dict[str, Any]:
        """What a study depends on, to be compared with that of another."""
        return json.loads(  # type: ignore[no-any-return]
            json.dumps(
                {
                    "configuration": {str(seed): values for seed, values in self.values.items()},
                    "space": {key: repr(parameter) for key, parameter in self.space.items()},
                    "objective": self.objective,
                }
            )
        )


class Runs:
    """Simulates points, side by side.

    Args:
        task: what is searched.
        pool: of processes.
    """

    def __init__(self, task: Task, pool: Executor) -> None:
        self._task = task
        self._pool = pool

    def refuse_outdated(self) -> None:
        """Look whether the runs of the policy as it is are still what would come out today.

        Raises:
            UserError: code, trace or predictor have changed since, so that old trials and new ones do not compare.
        """
        for seed in self._task.values:
            folder = self._task.folder({}, seed)
            try:
                record = RunRecord(folder)
            except UserError:
                continue
            other = differing(record.config, self._task.run({}, seed))
            if other:
                raise UserError(
                    f"out: found runs of something else in {self._task.out} ({other}), allowed: another folder"
                )
            what = changed(record)
            if what:
                raise UserError(
                    f"out: found runs in {self._task.out} from before {', '.join(what)} changed, "
                    "allowed: another folder, or this one when it was removed"
                )

    def as_it_is(self) -> Trial:
        """The policy as it is.

        Raises:
            UserError: it fails.
        """
        seeds = []
        for seed in self._task.values:
            (told,) = self.seed([{}], seed)
            if isinstance(told, str):
                raise UserError(told)
            seeds.append(told)
        return Trial(AS_IT_IS, {}, tuple(seeds))

    def seed(self, points: Sequence[Params], seed: int) -> list[Values | str]:
        """What a seed comes to at each point; why it failed, where it did."""
        with interrupts_blocked():
            futures = [
                self._pool.submit(work, self._task.run(point, seed), self._task.folder(point, seed), False, None)
                for point in points
            ]
        found: list[Values | str] = []
        for point, future in zip(points, futures, strict=True):
            failure = future.result()
            found.append(self._values(point, seed) if failure is None else failure.reason)
        return found

    def _values(self, point: Params, seed: int) -> Values:
        told = objectives(RunRecord(self._task.folder(point, seed)).summary, self._task.objective)
        return told if isinstance(told, tuple) else (float(told or 0.0),)


class Search:
    """A study that goes on where it stopped.

    Args:
        task: what is searched.
        runs: simulates.
        width: how many points are tried side by side.
        seed: of the proposals.
    """

    def __init__(self, task: Task, runs: Runs, width: int, seed: int) -> None:
        self._task = task
        self._runs = runs
        self._width = width
        self._study = _open(task, seed)
        self._distributions = {key: parameter.distribution() for key, parameter in task.space.items()}

    @property
    def begun(self) -> int:
        """How many trials have ended before."""
        return len(self.trials())

    def trials(self) -> list[Trial]:
        """All that have ended, in their order."""
        return [
            Trial(
                self._task.label(each.params),
                each.params,
                tuple(map(tuple, each.user_attrs.get(SEEDS, ()))),
                each.user_attrs.get(WHY, ""),
            )
            for each in self._study.trials
            if each.state.is_finished() and SEEDS in each.user_attrs
        ]

    def go_on(self, trials: int, as_it_is: Trial, ended: Callable[[Trial], None]) -> None:
        """Search until there are so many trials.

        Args:
            trials: in all, those of before included.
            as_it_is: what trials are measured by, beside each other.
            ended: told of each.
        """
        self._take_up()
        while (left := trials - self.begun) > 0:
            asked = [self._study.ask(self._distributions) for _ in range(min(left, self._width))]
            for each in self._tried(asked, as_it_is):
                ended(each)

    def _take_up(self) -> None:
        """Propose once more what was under way when the search ended; its finished runs are there."""
        from optuna.trial import TrialState

        for each in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(each.number, state=TrialState.FAIL)
            self._study.enqueue_trial(each.params)

    def _tried(self, asked: Sequence[optuna.Trial], as_it_is: Trial) -> list[Trial]:
        finished = [as_it_is, *(trial for trial in self.trials() if not trial.given_up)]
        points: list[Params] = [each.params for each in asked]
        seeds: list[list[Values]] = [[] for _ in asked]
        why = [""] * len(asked)
        for count, seed in enumerate(self._task.values, 1):
            going = [place for place, reason in enumerate(why) if not reason]
            for place, told in zip(going, self._runs.seed([points[place] for place in going], seed), strict=True):
                if isinstance(told, str):
                    why[place] = f"failed: {told}"
                    continue
                seeds[place].append(told)
                better = beaten_so_far(seeds[place], finished, self._task.objective)
                if better is not None and count < len(self._task.values):
                    why[place] = f"beaten by {better.label}"
        for place, each in enumerate(asked):
            self._tell(each, seeds[place], why[place])
        return self.trials()[-len(asked) :]

    def _tell(self, trial: optuna.Trial, seeds: Sequence[Values], why: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(SEEDS, list(map(list, seeds)))
        trial.set_user_attr(WHY, why)
        if why:
            self._study.tell(trial, state=TrialState.FAIL if why.startswith("failed") else TrialState.PRUNED)
        else:
            self._study.tell(trial, [math.fsum(each) / len(each) for each in zip(*seeds, strict=True)])


def _open(task: Task, seed: int) -> optuna.Study:
    """The study of a folder, made if there is none.

    Raises:
        UserError: it is one of something else.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(task.out / STUDY))),
        study_name=NAME,
        directions=["maximize" if wanted_high(key) else "minimize" for key in task.objective],
        load_if_exists=True,
    )
    before = study.user_attrs.get(ASKED)
    if before is None:
        study.set_user_attr(ASKED, task.told())
    elif before != task.told():
        what = ", ".join(key for key, value in task.told().items() if before.get(key) != value)
        raise UserError(f"out: found the study of another {what} in {task.out}, allowed: the same, or another folder")
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study

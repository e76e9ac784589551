"""Tune the parameters of a policy: ``voltana-tune policy=NAME space=... [key=value ...]``.

    voltana-tune policy=voltana rps=75 duration_s=60 trials=40 \\
        space='{prefill_controller.margin: 0..0.6, decode_controller.margin: 0..0.6}'

Keys of its own; all others are overrides of voltana-sim, and `--config-dir DIR` has policies of your own:

    space=FILE or {...}  the parameters, by their keys below `policy`, and what each may be:
                         0..0.5            numbers between, both ends included
                         1..8              whole numbers
                         0.01..10 log      spread evenly over their logarithm
                         [a, b, [c, d]]    one of these
    objective=[energy_j.total,joint_attainment]   numbers of summary.json; of shares in time, goodput and throughput
                         more is better, of all others less
    keep={joint_attainment: 0.95}   what the preset must keep; default: what the policy as it is reaches in every
                         objective but the first
    trials=40            points to try, in all
    seeds=3              runs of each, with the seeds 1 to 3
    name=NAME_tuned      of the preset
    out=outputs/tune     where study, runs and results go; started again, it goes on

The preset is the point of the Pareto front that is best in the first objective of those that keep what is to be kept.
A point is given up before its last seed once a finished one was no worse in every objective with every seed so far.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from voltana.app.extras import require
from voltana.app.objective import Objective, objective_of
from voltana.app.progress import Progress
from voltana.app.terminal import plain_console, short
from voltana.errors import UserError
from voltana.files import write_whole, yaml_text
from voltana.record import claim
from voltana.sim.run.commands import WIDE
from voltana.sim.run.pool import worker_pool
from voltana.sim.studies.asked import FOLDER, combinations, composed, own_and_overrides, path, study_command, whole
from voltana.tuning.space import read_space, refuse_unknown
from voltana.tuning.study import RUNS, STUDY, Runs, Search, Task
from voltana.tuning.trials import Trial, bounds, change_pct, chosen, front, wanted_high

if TYPE_CHECKING:
    from rich.table import Table

OWN = ("space", "objective", "keep", "trials", "seeds", "name", "out")
TRIALS_CSV, FRONT_PNG = "trials.csv", "front.png"
OTHER_SEEDS = "101,102,103,104,105"
"""For a look at what was found with requests that nothing was chosen by."""


@dataclass(frozen=True)
class Asked:
    """A command line."""

    task: Task
    keep: object
    trials: int
    name: str
    words: tuple[str, ...]
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, words: Sequence[str]) -> Asked:
        """Read and check it.

        Raises:
            UserError: something in it is wrong.
        """
        own, overrides = own_and_overrides(words, OWN)
        for override in overrides:
            if override.lstrip("+").startswith("seed="):
                raise UserError(f"{override}: found a seed, allowed: seeds=3, which has the seeds 1 to 3")
        if len(combinations(overrides)) != 1:
            raise UserError("overrides: found a sweep, allowed: one configuration; a search has one study")
        if "space" not in own:
            raise UserError(
                "space: found none, allowed: what may be changed, such as {decode_controller.margin: 0..0.5}"
            )
        space = read_space(own["space"])
        values = {seed: composed([*overrides, f"seed={seed}"]) for seed in range(1, whole(own, "seeds", 3) + 1)}
        objective = objective_of(
            OmegaConf.create({"objective": own.get("objective", ["energy_j.total", "joint_attainment"])})
        )
        if not objective or len(set(objective)) < len(objective):
            raise UserError(f"objective: found {list(objective)}, allowed: one key of summary.json and more, each once")
        task = Task(values, space, objective, path(own, "out", "outputs/tune"))
        refuse_unknown(space, task.policy)
        name = own.get("name", f"{task.policy['name']}_tuned")
        if not isinstance(name, str) or not name.isidentifier() or name == task.policy["name"]:
            raise UserError(
                f"name: found {name!r}, allowed: letters, digits and underscores, another than the policy's"
            )
        return cls(task, own.get("keep"), whole(own, "trials", 40), name, tuple(words), tuple(overrides))


@dataclass(frozen=True)
class Result:
    """What a search found."""

    as_it_is: Trial
    trials: list[Trial]
    front: list[Trial]
    kept: dict[str, float]
    chosen: Trial | None


def search(asked: Asked) -> Result:
    """Search, or go on."""
    task = asked.task
    width = max(2, len(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        stack.enter_context(claim(task.out, {}, overwrite=True))
        runs = Runs(task, stack.enter_context(worker_pool(width)))
        runs.refuse_outdated()
        as_it_is = runs.as_it_is()
        kept = bounds(asked.keep, as_it_is, task.objective)
        study = Search(task, runs, width, seed=1)
        with Progress("trials", max(0, asked.trials - study.begun)) as progress:
            study.go_on(asked.trials, as_it_is, lambda trial: progress.step(_in_words(trial, task.objective)))
    trials = study.trials()
    best = front(trials, task.objective)
    return Result(as_it_is, trials, best, dict(kept), chosen(best, kept, task.objective))


def _in_words(trial: Trial, objective: Objective) -> str:
    numbers = zip(objective, trial.mean, strict=True) if trial.seeds else ()
    told = ", ".join(f"{key} {value:.6g}" for key, value in numbers)
    return " ".join(word for word in (trial.label, told, f"({trial.given_up})" if trial.given_up else "") if word)


# Telling


def _cells(trial: Trial, as_it_is: Trial, objective: Objective) -> list[str]:
    cells = []
    for place, key in enumerate(objective):
        digits = 4 if "attainment" in key else 1
        half = trial.half(place)
        cells.append(f"{trial.mean[place]:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}"))
    change, half = change_pct(trial, as_it_is, 0)
    return [*cells, f"{change:+.2f}" + ("" if half is None else f" ±{half:.2f}")]


def front_table(result: Result, task: Task) -> Table:
    """The policy as it is, then the front; what the preset is has a star."""
    from rich.table import Table

    heads = (key.replace(".", "\n", 1) for key in (*task.objective, f"{task.objective[0]} %", *task.space))
    table = Table("", *heads, box=None)
    policy = task.policy
    for trial in (result.as_it_is, *result.front):
        values = (
            {key: parameter.value(trial.params[key]) for key, parameter in task.space.items()} if trial.params else {}
        )
        shown = [_short(values[key] if values else _value(policy, key)) for key in task.space]
        star = " *" if trial is result.chosen else ""
        table.add_row(trial.label + star, *_cells(trial, result.as_it_is, task.objective), *shown)
    return table


def _value(policy: Any, key: str) -> Any:
    for step in key.split("."):
        policy = policy[step]
    return policy


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def notes_of(result: Result, asked: Asked) -> list[str]:
    """What a reader must know of the table, and what to do with the preset."""
    task, seeds = asked.task, len(asked.task.values)
    beaten = sum(trial.given_up.startswith("beaten") for trial in result.trials)
    failed = [trial for trial in result.trials if trial.given_up.startswith("failed")]
    notes = [f"{len(result.trials)} trials, {beaten} given up early, {len(failed)} failed; seeds: {seeds}"]
    if seeds > 2:
        notes[0] += (
            "; mean ± 95 % confidence interval; changes in per cent are seed by seed against the policy as it is"
        )
    if failed:
        notes.append(f"The first failure: {failed[0].label} {failed[0].given_up}")
    kept = ", ".join(f"{key} {'>=' if wanted_high(key) else '<='} {bound:.6g}" for key, bound in result.kept.items())
    if result.chosen is None:
        if not result.front:
            return [*notes, "No trial was finished: the policy as it is beats all that was tried. There is no preset."]
        return [*notes, f"No trial that was finished keeps {kept}, so there is no preset."]
    change, half = change_pct(result.chosen, result.as_it_is, 0)
    if not _is_better(change, half, task.objective[0]):
        notes.append("The change of the preset is within what seeds differ by, or it is for the worse.")
    words = " ".join(shlex.quote(_elsewhere(word)) for word in asked.overrides if not word.startswith("policy="))
    policies = ",".join((next((w[7:] for w in asked.overrides if w.startswith("policy=")), "voltana"), asked.name))
    check = f"voltana-sim -m --config-dir {short(task.out)} policy={policies} {words} seed={OTHER_SEEDS}"
    return [*notes, "It was chosen by these seeds. To see what it does with others:", f"    {' '.join(check.split())}"]


def _elsewhere(word: str) -> str:
    """A word for a command whose `--config-dir` is another: a folder of configuration goes to Hydra's search path."""
    if not word.startswith(FOLDER):
        return word
    return f"hydra.searchpath=[file://{Path(word.removeprefix(FOLDER)).resolve()}]"


def _is_better(change: float, half: float | None, key: str) -> bool:
    return (change if wanted_high(key) else -change) > (half or 0.0)


def preset_text(result: Result, asked: Asked) -> str:
    """The chosen policy as a file for `policy=`: all its parameters, as they were measured."""
    assert result.chosen is not None
    task, trial = asked.task, result.chosen
    seed = next(iter(task.values))
    policy = task.run(trial.params, seed)["policy"] | {"name": asked.name}
    told = [f"Found by: voltana-tune {' '.join(map(shlex.quote, asked.words))}"]
    for place, key in enumerate(task.objective):
        told.append(f"{key}: {trial.mean[place]:.6g}, where the policy as it is has {result.as_it_is.mean[place]:.6g}")
    return "".join(f"# {' '.join(line.split())}\n" for line in told) + yaml_text(policy)


def csv_text(result: Result, task: Task) -> str:
    """A row per trial, the policy as it is first."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trial", "outcome", "seeds", *task.objective, *task.space))
    best = {trial.label for trial in result.front}
    for trial in (result.as_it_is, *result.trials):
        outcome = trial.given_up or ("front" if trial.label in best else "beaten" if trial.params else "")
        means = trial.mean if trial.seeds else (None,) * len(task.objective)
        params = [parameter.value(trial.params[key]) for key, parameter in task.space.items()] if trial.params else []
        writer.writerow((trial.label, outcome, len(trial.seeds), *means, *params))
    return text.getvalue()


def write(result: Result, asked: Asked) -> list[str]:
    """Write table, picture and preset; tell where each is."""
    from voltana.analysis import figures
    from voltana.analysis.front import Points, front_figure

    task = asked.task
    write_whole(task.out / TRIALS_CSV, csv_text(result, task))
    told = [f"wrote {short(task.out / TRIALS_CSV)}; the runs are in {short(task.out / RUNS)}, the study is {STUDY}"]
    if len(task.objective) == 2:
        places = Points(
            tried=[trial.mean for trial in result.trials if not trial.given_up],
            front=[trial.mean for trial in result.front],
            as_it_is=result.as_it_is.mean,
            chosen=None if result.chosen is None else result.chosen.mean,
        )
        figures.save(front_figure(places, task.objective, str(task.policy["name"])), task.out / FRONT_PNG)
        told.append(f"wrote {short(task.out / FRONT_PNG)}")
    if result.chosen is not None:
        preset = task.out / "policy" / f"{asked.name}.yaml"
        write_whole(preset, preset_text(result, asked))
        told.append(f"wrote {short(preset)}: with --config-dir {short(task.out)}, policy={asked.name} is this policy")
    return told


def run(words: Sequence[str]) -> None:
    """Search, print, write.

    Raises:
        UserError: something that was asked for is wrong, or Optuna is not installed.
    """
    from rich.measure import Measurement

    asked = Asked.read(words)
    require("voltana-tune", "tune")
    result = search(asked)
    written = write(result, asked)
    table, console = front_table(result, asked.task), plain_console()
    widest = Measurement.get(console, console.options.update(max_width=WIDE), table).maximum
    plain_console(width=max(console.width, widest)).print(table)
    for line in [*notes_of(result, asked), *written]:
        console.print(line, soft_wrap=True)


def main() -> None:
    """voltana-tune."""
    study_command("voltana-tune", __doc__, run, "started again, it goes on")


if __name__ == "__main__":
    main()

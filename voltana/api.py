"""From Python: run, load, compare. `import voltana` has these names, and imports nothing before one is used.

record = voltana.simulate({"policy": "voltana", "rps": 75, "duration_s": 20})
record.summary["energy_j"]["total"]

records = voltana.load("outputs/demo/runs")
records.summary                      one row a run
records.compare()                    one row a policy and setting, as voltana-compare
records.requests()                   one row a request, with its run's policy and setting
records.report("report.html")
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.analysis.runs import Run, RunSet, load_runs
from voltana.errors import UserError
from voltana.record import RunRecord as Record
from voltana.record import flatten

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "Records", "UserError", "compare", "load", "simulate"]

_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./:-]*", re.IGNORECASE | re.ASCII)
"""Text that Hydra takes as text without quotes."""

Folders = str | Path | Record | Sequence[str | Path | Record]


def simulate(
    overrides: Mapping[str, Any] | Sequence[str], folder: str | Path | None = None, *, overwrite: bool = False
) -> Record:
    """Simulate one run, or take its record if it is there already.

    Args:
        overrides: of the configuration of voltana-sim: by key, or as they are typed, `["policy=voltana", "rps=75"]`.
        folder: where the record goes; None: `outputs/python/` and a hash of the configuration.
        overwrite: whether to run what is there already, and replace a finished record of something else.

    Returns:
        The record: `summary`, `config`, `provenance`, and its tables by `requests()` and `instances()`.

    Raises:
        UserError: an override is wrong, or the folder is another run's.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from voltana.app.cli import explain
    from voltana.sim.run.compose import compose_sim
    from voltana.sim.run.worker import run_job

    words = as_overrides(overrides)
    try:
        values = compose_sim(*words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if folder is None:
        told = json.dumps(values, sort_keys=True, default=str)
        folder = Path("outputs", "python", hashlib.sha256(told.encode()).hexdigest()[:12])
    run_job(values, Path(folder), overwrite)
    return Record(Path(folder))


def as_overrides(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Overrides as they are typed.

    Raises:
        UserError: they are neither a mapping nor a list of texts.
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={_word(value)}" for key, value in overrides.items()]
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        allowed = 'a mapping, {"rps": 75}, or a list of texts, ["rps=75"]'
        raise UserError(f"overrides: found {overrides!r}, allowed: {allowed}")
    return list(overrides)


def _word(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_word, value)) + "]"
    text = str(value)
    if not isinstance(value, str) or _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)(\"|$)", lambda each: each[1] * 2 + ('\\"' if each[2] else ""), text)
    return f'"{escaped}"'


def load(runs: Folders) -> Records:
    """Read every finished run in or below a folder, or several.

    Args:
        runs: a folder or a record, or a list of such.

    Raises:
        UserError: there is none, or one is malformed.
    """
    several = [runs] if isinstance(runs, str | Path | Record) else list(runs)
    return Records(load_runs([each.folder if isinstance(each, Record) else each for each in several]))


def compare(runs: Records | Folders, baseline: str = "static_max", oracle: str | None = "oracle") -> pd.DataFrame:
    """Policies against a baseline, as `Records.compare`.

    Args:
        runs: what `load` takes, or gave.
        baseline: the policy whose energy the others save.
        oracle: the policy whose energy theirs is shown over, where it is there.

    Raises:
        UserError: as `load`, or there is no run of the baseline.
    """
    return (runs if isinstance(runs, Records) else load(runs)).compare(baseline, oracle)


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """Runs side by side: a sequence of their records."""

    runs: RunSet

    def __len__(self) -> int:
        return len(self.runs.runs)

    def __getitem__(self, index: Any) -> Any:
        found = self.runs.runs[index]
        return [run.record for run in found] if isinstance(found, list) else found.record

    @property
    def summary(self) -> pd.DataFrame:
        """One row a run: what tells it from the others, then every number of its summary by its dotted key."""
        import pandas as pd

        numbers = [
            {key: value for key, value in flatten(run.record.summary).items() if isinstance(value, int | float)}
            for run in self.runs.runs
        ]
        return pd.DataFrame([_identity(run) | each for run, each in zip(self.runs.runs, numbers, strict=True)])

    def requests(self) -> pd.DataFrame:
        """The requests of all runs, a row each (`voltana.record.RequestRow`), with what tells the run."""
        return self._tables("requests")

    def instances(self) -> pd.DataFrame:
        """The changes of all instances, a row each (`voltana.record.InstanceRow`), with what tells the run."""
        return self._tables("instances")

    def compare(self, baseline: str = "static_max", oracle: str | None = "oracle") -> pd.DataFrame:
        """One row a policy and setting, with the columns of `voltana-compare csv=`.

        Raises:
            UserError: there is no run of the baseline.
        """
        import pandas as pd

        from voltana.analysis import tables

        return pd.read_csv(StringIO(tables.csv_text(tables.compare(self.runs, baseline, oracle))))

    def report(self, path: str | Path = "report.html", **options: Any) -> Path:
        """Write the page of voltana-report.

        Args:
            path: the file.
            options: as of the command: `baseline`, `oracle`, `x`, `details`, `timelines`, `title`.

        Returns:
            The file.

        Raises:
            UserError: it cannot be written.
        """
        from voltana.analysis.page.write import Options, write_report

        write_report(self.runs, Path(path), Options(**options))
        return Path(path)

    def _tables(self, name: str) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for run in self.runs.runs:
            frame = getattr(run.record, name)()
            for place, (key, value) in enumerate(_identity(run).items()):
                frame.insert(place, key, value)
            frames.append(frame)
        together: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return together


def _identity(run: Run) -> dict[str, Any]:
    return {"run": str(run.record.folder), "policy": run.policy, **run.setting, "seed": run.seed}

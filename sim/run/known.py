"""Single runs whose configuration Hydra has composed before: they start without it, in half the time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.app.kept import KeptCompositions, folders_of, split_own_folders
from voltana.sim.run.compose import SHIPPED

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FOLDER = "hydra.run.dir="
_PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)(?:[a-z_/]|\.\.?/)[\w./-]*", re.IGNORECASE)
"""A path that Hydra's grammar takes for one as it is."""


class KnownRun(NamedTuple):
    """A run as Hydra would start it."""

    values: dict[str, Any]
    """The resolved configuration."""
    folder: Path
    """Where its record goes."""
    overwrite: bool


def find_run(words: Sequence[str]) -> KnownRun | None:
    """The run of a command line; None where Hydra is needed to know it.

    Args:
        words: the command line, without the program.
    """
    own, others = split_own_folders(words)
    asked = [word for word in others if word.startswith(_FOLDER)]
    settings = [word for word in others if word not in asked]
    if len(asked) > 1 or any(word.lstrip("+~").startswith(("-", "hydra")) for word in settings):
        return None
    found = KeptCompositions(SHIPPED, *own).find("run", *settings)
    if found is None:
        return None
    folder = asked[0].removeprefix(_FOLDER) if asked else _with_times(found["folder"])
    if not _PLAIN.fullmatch(folder):
        return None
    return KnownRun(found["values"], Path.cwd() / folder, found["overwrite"])


def keep_run(config: DictConfig, hydra: Any, values: Mapping[str, Any]) -> None:
    """Keep a run that Hydra started, if it can be started without it.

    Args:
        config: as composed.
        hydra: Hydra's own section.
        values: the resolved configuration.
    """
    from omegaconf import OmegaConf

    from voltana.app.resolve import overwrite_of, repeats

    told: Any = OmegaConf.to_container(hydra, resolve=False)
    folders = folders_of(told["runtime"]["config_sources"])
    asked = [word for word in told["overrides"]["hydra"] if word != "hydra.mode=RUN"]
    others = [word for word in asked if not word.startswith(_FOLDER)]
    if folders is None or others or _does_more(told) or not repeats(config):
        return
    kept = KeptCompositions(*folders)
    folder = "" if asked else told["run"]["dir"]
    kept.keep(
        {"values": values, "folder": folder, "overwrite": overwrite_of(config)}, "run", *told["overrides"]["task"]
    )
    kept.save()


def _does_more(hydra: Mapping[Any, Any]) -> bool:
    """Whether Hydra does anything else for a run than to compose its configuration."""
    job = hydra["job"]
    logs = any(hydra["runtime"]["choices"][f"hydra/{kind}_logging"] != "none" for kind in ("job", "hydra"))
    sets = job["env_set"] or job["env_copy"] or job["chdir"] or hydra["output_subdir"]
    return bool(str(hydra["mode"]) != "RunMode.RUN" or hydra["callbacks"] or logs or sets)


def _with_times(folder: str) -> str:
    """A folder with the present time where it asks for that."""
    now = datetime.now()
    return re.sub(r"\$\{now:([^{}]+)\}", lambda found: now.strftime(found[1]), folder)

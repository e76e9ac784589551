"""The words of a study's command line: its own settings as `key=value`, the rest overrides that may be swept."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from voltana.app.kept import split_own_folders
from voltana.app.terminal import take_any_text
from voltana.compiled import version
from voltana.errors import UserError
from voltana.sim.run.commands import one_thread_each


def study_command(program: str, about: str | None, run: Callable[[Sequence[str]], None], interrupted: str) -> None:
    """Do what the console script of a study does; what goes wrong is told in one line.

    Args:
        program: its name.
        about: what `--help` prints.
        run: takes the words typed behind the name.
        interrupted: what is told where Ctrl-C ended it.
    """
    take_any_text()
    words = sys.argv[1:]
    if "--version" in words:
        print(f"{program} {version()}")
        return
    if {"-h", "--help"} & set(words):
        print(about)
        return
    one_thread_each()
    try:
        run(words)
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)


FOLDER = "--config-dir="


def own_and_overrides(words: Sequence[str], own: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Divide a command line.

    Args:
        words: as typed.
        own: keys of the study itself, whose values are read as YAML.

    Returns:
        The study's values, and the overrides; those begin with `--config-dir=FOLDER` for each such folder.

    Raises:
        UserError: a word is no `key=value`, a value cannot be read, a key of the study's stands twice, or there is no
            such folder.
    """
    folders, others = split_own_folders(words)
    named = sum(word.partition("=")[0] in ("--config-dir", "-cd") for word in words)
    if named != len(folders):
        raise UserError("--config-dir: found no such folder, allowed: one with GROUP/NAME.yaml")
    found: dict[str, Any] = {}
    overrides = [f"{FOLDER}{folder}" for folder in folders]
    for word in others:
        key, equals, text = word.partition("=")
        if not equals and not key.startswith("~"):
            raise UserError(f"found {word!r}, allowed: key=value; keys of its own: {', '.join(own)}; see --help")
        if key not in own:
            overrides.append(word)
            continue
        if key in found:
            raise UserError(f"{key}: found twice, allowed: once")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{key}: found {text!r}, which is no YAML") from error
    return found, overrides


def combinations(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Every combination of swept overrides, as Hydra's `-m` makes them; by the words that tell one from the others.

    Raises:
        UserError: an override cannot be read.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from voltana.app.cli import explain

    folders = [word for word in overrides if word.startswith(FOLDER)]
    try:
        parsed = OverridesParser.create().parse_overrides([word for word in overrides if word not in folders])
        lists = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except HydraException as error:
        raise UserError(explain(error)) from error
    swept = [i for i, override in enumerate(parsed) if override.is_sweep_override()]
    return {" ".join(each[i] for i in swept): [*folders, *each] for each in lists}


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run.

    Args:
        overrides: as `own_and_overrides` gives them.

    Raises:
        UserError: an override is wrong.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from voltana.app.cli import explain
    from voltana.sim.run.compose import compose_sim

    folders = [word for word in overrides if word.startswith(FOLDER)]
    try:
        return compose_sim(
            *(word for word in overrides if word not in folders),
            folders=[Path(word.removeprefix(FOLDER)) for word in folders],
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def folder_of(label: str) -> str:
    """A name for the folder of a combination."""
    return re.sub(r"[^\w.,=@-]+", "_", label) or "all"


def number(found: Mapping[str, Any], key: str, default: float, above: float = 0.0) -> float:
    """A number of the study's own.

    Raises:
        UserError: it is none, or not above `above`.
    """
    value = found.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
        raise UserError(f"{key}: found {value!r}, allowed: a number above {above:g}")
    return float(value)


def whole(found: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number from 1 of the study's own.

    Raises:
        UserError: it is none.
    """
    value = found.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: found {value!r}, allowed: a whole number from 1")
    return value


def path(found: Mapping[str, Any], key: str, default: str) -> Path:
    """A path of the study's own.

    Raises:
        UserError: it is no text.
    """
    value = found.get(key, default)
    if not isinstance(value, str) or not value:
        raise UserError(f"{key}: found {value!r}, allowed: a path")
    return Path(value)

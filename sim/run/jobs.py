"""The configurations of a sweep's jobs: most are known already, or differ from another in some values alone."""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voltana.app.kept import KeptCompositions, folders_of
from voltana.app.resolve import NOT_OF_THE_RUN, repeats, resolve, without_hydra
from voltana.sim.run.compose import named_gpus, run_values

NUMBERED = "${hydra.job.num}"


class Job(NamedTuple):
    """A job as it was composed."""

    values: dict[str, Any]
    """Resolved, as its record has them."""
    sweep: dict[str, str]
    """Hydra's section `sweep`, unresolved: `dir` and `subdir`."""


class _Choices(NamedTuple):
    """What jobs with the same choices start from."""

    config: bytes
    """A DictConfig without Hydra's own section, pickled."""
    sweep: dict[str, str]
    repeats: bool


class JobComposer:
    """Composes each job of a sweep once, by Hydra only what no other job with the same choices has had composed.

    Args:
        loader: Hydra's.
        master: the configuration of the sweep itself.
    """

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        loader.repository = _FilesReadOnce(loader.repository)  # type: ignore[assignment]
        self._loader = loader
        self._load = loader.load_sweep_config
        self._master = master
        self._jobs: dict[tuple[str, ...], Job] = {}
        folders = folders_of(master.hydra.runtime.config_sources)
        self._kept = None if folders is None else KeptCompositions(*folders)
        self._choices = lru_cache(maxsize=32)(self._compose_choices)
        self._parse = lru_cache(maxsize=None)(OverridesParser.create(config_loader=loader).parse_override)

    def job(self, overrides: tuple[str, ...]) -> Job:
        """A job by its overrides.

        Raises:
            HydraException, OmegaConfBaseException: Hydra cannot compose it.
        """
        if overrides not in self._jobs:
            self._jobs[overrides] = self._find(overrides) or self._composed(overrides)
        return self._jobs[overrides]

    def folder(self, overrides: tuple[str, ...], number: int) -> Path:
        """Where a job writes its record.

        Args:
            overrides: of the job.
            number: of the job.
        """
        sweep = self.job(overrides).sweep
        if sweep == _sweep(self._master) | {"subdir": NUMBERED}:
            return Path(str(self._master.hydra.sweep.dir)) / str(number)
        config = self._by_hydra(overrides)
        OmegaConf.set_struct(config, False)
        config.merge_with({"hydra": {"job": {"num": number, "id": str(number)}}})
        return Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)

    def save(self) -> None:
        """Keep what was composed for the next sweep."""
        if self._kept is not None:
            self._kept.save()

    def _words(self, overrides: tuple[str, ...]) -> tuple[str, ...]:
        hydra = OmegaConf.to_container(self._master.hydra.overrides.hydra, resolve=False)
        assert isinstance(hydra, list)
        return ("job", *map(str, hydra), *overrides)

    def _find(self, overrides: tuple[str, ...]) -> Job | None:
        found = None if self._kept is None else self._kept.find(*self._words(overrides))
        return None if found is None else Job(**found)

    def _composed(self, overrides: tuple[str, ...]) -> Job:
        made = self._from_choices(overrides)
        if made is None:
            config = self._by_hydra(overrides)
            made, again = Job(run_values(config, overrides), _sweep(config)), repeats(config)
        else:
            again = True
        if again and self._kept is not None:
            self._kept.keep(made._asdict(), *self._words(overrides))
        return made

    def _from_choices(self, overrides: tuple[str, ...]) -> Job | None:
        """The job from what others with the same choices start from; None where that might not be the same."""
        parsed = {word: self._parse(word) for word in overrides}
        if any(map(_is_unusual, parsed.values())):
            return None
        settings = {word: each for word, each in parsed.items() if not self._is_choice(each)}
        start = self._choices(tuple(word for word in overrides if word not in settings))
        if not start.repeats:
            return None
        config = pickle.loads(start.config)
        try:
            self._loader._apply_overrides_to_config(list(settings.values()), config)
        except (HydraException, OmegaConfBaseException):  # which Hydra is to tell
            return None
        return None if named_gpus(config) else Job(resolve(config), start.sweep)

    def _is_choice(self, override: Override) -> bool:
        return bool(self._loader.repository.group_exists(override.key_or_group))

    def _compose_choices(self, words: tuple[str, ...]) -> _Choices:
        config = self._by_hydra(words)
        own = without_hydra(config)
        OmegaConf.set_struct(own, True)
        return _Choices(pickle.dumps(own), _sweep(config), repeats(config))

    def _by_hydra(self, overrides: tuple[str, ...]) -> DictConfig:
        return self._load(self._master, list(overrides))


def _is_unusual(override: Override) -> bool:
    """Whether an override does anything else than to choose in a group or to set a plain value."""
    told = override.input_line or ""
    adds = override.is_add() or override.is_force_add() or override.is_delete()
    about_the_run = override.key_or_group.partition(".")[0] in ("hydra", *NOT_OF_THE_RUN)
    return adds or about_the_run or "${" in told or isinstance(override.value(), dict)


def _sweep(config: DictConfig) -> dict[str, str]:
    told = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(told, dict)
    return {key: str(told[key]) for key in ("dir", "subdir")}


class _FilesReadOnce(CachingConfigRepository):
    """Configuration files for many compositions, where Hydra has a cache for each.

    A composition changes what it loads, so each gets a copy; by pickle, which is five times as fast as `deepcopy`.
    """

    def __init__(self, delegate: ConfigRepository) -> None:
        super().__init__(delegate)
        self._pickled: dict[str, bytes] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A file's content."""
        if config_path not in self._pickled:
            self._pickled[config_path] = pickle.dumps(self.delegate.load_config(config_path))
        found: ConfigResult | None = pickle.loads(self._pickled[config_path])
        return found

    def __deepcopy__(self, memo: object) -> _FilesReadOnce:
        return self

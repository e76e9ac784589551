"""A run record simulated again: its own requests under its own configuration, `voltana-sim replay=RECORD`.

The twin of a live run shows what is not physics: it differs from it by processes, sockets, timers and the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voltana.errors import UserError
from voltana.record import REQUESTS, RunRecord

REQUESTS_OF_THE_RECORD = ("trace=record", "arrival=timestamps", "duration_s=null", "requests=null")
NO_FRONT_END = "front_end=none"
"""Of live runs: the process that conf/front_end/released.yaml describes does not stand before their servers."""


def replay_config(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration in which a record is simulated again.

    Args:
        config: as composed from conf/sim.yaml and the overrides, its key `replay` the folder of a record.
        overrides: of the command line; what they set wins over the record.

    Returns:
        What the overrides set; else what the record has, its requests by `trace=record`; else, as for the keys that
        live runs lack, the defaults of conf/sim.yaml. What was computed from a section that an override replaces,
        such as objectives from the model, stays the record's.

    Raises:
        UserError: `replay` names no finished record, or one without requests, or a preset is asked for beside it.
    """
    record = _record(config.replay)
    live = record.summary.get("source") == "live"
    requests = str(record.folder / REQUESTS)
    twin = _composed(*REQUESTS_OF_THE_RECORD, *([NO_FRONT_END] if live else ()))
    twin["trace"]["path"] = requests
    from_requests = {word.partition("=")[0] for word in REQUESTS_OF_THE_RECORD}
    for key, value in record.config.items():
        if key not in from_requests and (key in twin or not live):
            twin[key] = value
    wanted = OmegaConf.to_container(config, resolve=False)
    assert isinstance(wanted, dict)
    for path in _paths(overrides):
        _copy(wanted, twin, path)
    return OmegaConf.create(twin)


def _record(folder: object) -> RunRecord:
    if not isinstance(folder, str):
        raise UserError(f"replay: found {folder!r}, allowed: the folder of a run record")
    try:
        record = RunRecord(Path(folder))
        if not len(record.requests()):
            raise UserError(f"{folder}: found no requests, allowed: at least one")
    except UserError as error:
        raise UserError(f"replay: {error}") from error
    return record


def _composed(*overrides: str) -> dict[Any, Any]:
    """conf/sim.yaml with overrides, by the Hydra that is at work, so that a user's own configuration folder counts."""
    from hydra import compose

    values = OmegaConf.to_container(compose("sim", overrides=list(overrides)), resolve=False)
    assert isinstance(values, dict)
    return values


def _paths(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Where overrides put something: a value's keys, a group's package, the section of a nested group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        place = override.package or override.key_or_group.partition("/")[0]
        if place == "experiment" and override.value() is not None:
            raise UserError("experiment: found a preset beside replay, allowed: null, as the record says what is run")
        if place != "replay":
            yield place.split(".")


def _copy(source: Mapping[Any, Any], target: dict[Any, Any], path: Sequence[str]) -> None:
    """Make the target hold at a path what the source does, or nothing where the source has nothing."""
    *sections, key = path
    for section in sections:
        source = source.get(section) or {}
        inner = target.get(section)
        target[section] = target = inner if isinstance(inner, dict) else {}
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)

"""Run records side by side: what was compared (policies) under what (settings), repeated how often (seeds).

Which configuration keys make a setting is found from the records: those that vary, outside the policy and the
seeds. A nested key that follows from the others (the tensor parallelism of a model, the rate inside the arrival
process) says nothing new and is left out. Policies that carry the same name but differ in a parameter at the same
setting are told apart by it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from voltana.errors import UserError
from voltana.record import CONFIG, SUMMARY, RunRecord, find_records, find_unfinished, flatten
from voltana.record.gpus import about_gpus
from voltana.record.resolution import unclocked

GROUPS = ("source", "model", "gpu", "cluster", "trace", "arrival", "slo", "rps")
"""What identifies a run besides its policy, in the order to show it."""
RATE = "rps"
_UNSET = "-"
SCALED = "power scaled"
"""Stands behind the name of a GPU whose power was not measured, wherever it is shown."""

Value = str | int | float | bool | None
Flat = dict[str, Value]


@dataclass(frozen=True)
class Run:
    """One run record and its place in the comparison."""

    record: RunRecord
    policy: str
    setting: dict[str, Value]
    seed: Value

    def number(self, *path: str, may_lack: bool = False) -> float | None:
        """A number of summary.json; None where the run could not know it, or lacks it as older records may."""
        value: Any = self.record.summary
        for depth, key in enumerate(path):
            if not isinstance(value, Mapping) or key not in value:
                if may_lack:
                    return None
                raise UserError(f"{self.record.folder / SUMMARY}: missing key {'.'.join(path[: depth + 1])}")
            value = value[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{self.record.folder / SUMMARY}: {'.'.join(path)}: found {value!r}, allowed: a number")
        return value

    @property
    def starved(self) -> tuple[str, ...]:
        """What was late beyond its bound, so that the numbers are the machine's and not the policy's."""
        found = self.record.summary.get("starved") or []
        if not isinstance(found, list) or not all(isinstance(reason, str) for reason in found):
            raise UserError(f"{self.record.folder / SUMMARY}: starved: found {found!r}, allowed: a list of texts")
        return tuple(found)

    @property
    def servers_ended(self) -> tuple[str, ...]:
        """The servers that died in a live run."""
        live = self.record.summary.get("live")
        found = live.get("servers_ended") if isinstance(live, Mapping) else None
        return tuple(map(str, found)) if isinstance(found, Mapping) else ()

    @property
    def unclocked(self) -> bool:
        """Whether real servers ran beside simulated GPUs: how fast they are does not follow the clock."""
        return unclocked(self.record.summary)

    @property
    def rate(self) -> float | None:
        """Requests per second: what was asked for, or that of the trace; None where it is not known."""
        rate = self.flat.get(RATE)
        return float(rate) if isinstance(rate, int | float) else None

    def name(self, group: str) -> str:
        """The chosen option of a configuration group, such as `model`."""
        return str(self.flat.get(f"{group}.name", _UNSET))

    @cached_property
    def flat(self) -> Flat:
        """Its configuration, see `flat_config`."""
        return flat_config(self.record)


@dataclass(frozen=True)
class RunSet:
    """Runs and what they share."""

    runs: list[Run]
    keys: list[str]
    """The configuration keys that make a setting, in the order to show them."""
    shared: dict[str, Value]
    """Names and numbers that all runs have in common."""
    repeated: list[Path]
    """Simulated runs left out because another one has the same configuration."""
    interrupted: list[Path]
    """Runs left out because they were cut short."""
    unfinished: list[RunRecord]
    """Records left out because their run did not end: it goes on, was killed or failed."""

    def policies(self) -> list[str]:
        """Every policy, in the order of the records."""
        return list(dict.fromkeys(run.policy for run in self.runs))

    def settings(self) -> list[dict[str, Value]]:
        """Every setting, in order of its values."""
        unique = {_identity(run.setting.values()): run.setting for run in self.runs}
        return sorted(unique.values(), key=lambda setting: [_rank(value) for value in setting.values()])

    def sweeps(self) -> dict[str, int]:
        """The sweeps that the runs belong to, as they were typed, and how many runs each has."""
        told = [sweep for run in self.runs if (sweep := run.record.provenance.get("sweep"))]
        return dict(Counter(" ".join(sweep["overrides"]) for sweep in told))

    def at(self, setting: Mapping[str, Value], policy: str) -> list[Run]:
        """The repetitions of a policy at a setting."""
        return [run for run in self.runs if run.policy == policy and run.setting == setting]


def folders_of(runs: Any) -> list[str]:
    """The `runs` option: a folder or a list of folders.

    Raises:
        UserError: it is neither, or empty.
    """
    folders = [runs] if isinstance(runs, str) else runs
    if not isinstance(folders, Sequence) or not folders or not all(isinstance(name, str) for name in folders):
        raise UserError(f"runs: found {runs!r}, allowed: a folder or a list of folders, runs=[a,b]")
    return list(folders)


def load_runs(folders: Sequence[str | Path], *, interrupted: bool = False) -> RunSet:
    """Read every run in or below the folders.

    Args:
        folders: as the `runs` option.
        interrupted: whether runs that were cut short or did not end are wanted too.

    Raises:
        UserError: a folder holds no record, a record is malformed, or all were cut short and are not wanted.
    """
    unfinished = find_unfinished(folders)
    found = [*find_records(folders, or_none=interrupted and bool(unfinished)), *(unfinished if interrupted else ())]
    records = [record for record in found if interrupted or not record.interrupted]
    if not records:
        raise UserError(f"runs: found nothing but interrupted runs ({found[0].folder}), allowed: a run that ended")
    cut_short = [record.folder for record in found if record not in records]
    flats = [flat_config(record) for record in records]
    names = [_policy_name(record, flat) for record, flat in zip(records, flats, strict=True)]
    keys = _setting_keys(flats)
    settings = [{_label(key): flat.get(key) for key in keys} for flat in flats]
    policies = _policy_labels(names, flats, settings)
    runs: dict[tuple[str, ...], Run] = {}
    repeated = []
    for record, flat, setting, policy in zip(records, flats, settings, policies, strict=True):
        run = Run(record, policy, setting, flat.get("seed"))
        simulated = flat["source"] == "sim"
        identity = (policy, *_identity(setting.values()), str(run.seed), "" if simulated else str(record.folder))
        if identity in runs:
            repeated.append(record.folder)
        else:
            runs[identity] = run
    return RunSet(list(runs.values()), [_label(key) for key in keys], _shared(flats), repeated, cut_short, unfinished)


class TraceRate(float):
    """The request rate of a trace that was replayed at its own times; it shows as `trace 9.8`."""

    @classmethod
    def of(cls, rate: float) -> TraceRate:
        """A rate to the three digits that are shown, so that what looks alike is alike."""
        return cls(f"{rate:.3g}")

    def __str__(self) -> str:
        """With its mark."""
        return f"trace {float(self):.10g}"

    def __format__(self, _: str) -> str:
        """With its mark, however numbers are formatted."""
        return str(self)

    __repr__ = __str__


def flat_config(record: RunRecord) -> Flat:
    """The configuration of a run with dotted keys, and its `source`; `rps` is that of the trace where it had its own.

    In a record that does not tell its arrivals, made before records did, the rate of such a trace is unknown.
    """
    flat: Flat = {"source": record.summary.get("source"), **_flatten(record.config)}
    about = about_gpus(record.config)
    flat.pop("gpu.power", None)
    if "name" in about:
        flat["gpu.name"] = f"{about['name']} ({SCALED})" if about.get("power") == "scaled" else about["name"]
    arrivals = record.summary.get("arrivals")
    if isinstance(arrivals, Mapping) and arrivals.get("requested_rps", "") is None:
        rate = arrivals.get("rate_per_s")
        flat["rps"] = TraceRate.of(rate) if isinstance(rate, int | float) else None
    elif arrivals is None and flat.get("arrival.name") == "timestamps":
        flat["rps"] = None
    return flat


def replay_of(record: RunRecord) -> str | None:
    """What was replayed, in words, if a trace came at its own times."""
    rate, arrivals = flat_config(record).get("rps"), record.summary.get("arrivals")
    if not isinstance(rate, TraceRate) or not isinstance(arrivals, Mapping):
        return None
    skipped = sum(each["count"] for each in arrivals.get("skipped", ()))
    left_out = f", {skipped} of {arrivals.get('rows_read')} rows skipped" if skipped else ""
    path = _flatten(record.config).get("trace.path")
    source = f" of {path}" if path else ""
    return f"{rate}/s: {arrivals['count']} requests in {arrivals['span_s']:.1f} s{source}{left_out}"


def _flatten(config: Mapping[str, Any]) -> Flat:
    """With dotted keys; what is no single value, such as a list, as its JSON."""
    return {
        key: value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)
        for key, value in flatten(config).items()
    }


def _policy_name(record: RunRecord, flat: Flat) -> str:
    name = flat.get("policy.name")
    if not isinstance(name, str):
        raise UserError(f"{record.folder / CONFIG}: policy.name: found {name!r}, allowed: the name of a policy")
    return name


def _setting_keys(flats: Sequence[Flat]) -> list[str]:
    varying = [key for key in _all_keys(flats) if not _is_policy(key) and not _is_seed(key) and _varies(key, flats)]
    chosen = [key for key in varying if "." not in _label(key)]
    blocks = [_identity(flat.get(key) for key in chosen) for flat in flats]
    nested = [key for key in varying if key not in chosen]
    return sorted(chosen + _refining(nested, flats, blocks), key=_key_order)


def _policy_labels(names: Sequence[str], flats: Sequence[Flat], settings: Sequence[dict[str, Value]]) -> list[str]:
    blocks = [(name, *_identity(setting.values())) for name, setting in zip(names, settings, strict=True)]
    parameters = [key for key in _all_keys(flats) if _is_policy(key) and not _is_seed(key)]
    telling = _refining(parameters, flats, blocks)
    labels = []
    for name, flat in zip(names, flats, strict=True):
        same_name = [other for other, other_name in zip(flats, names, strict=True) if other_name == name]
        parts = [_part(key, flat.get(key)) for key in telling if _varies(key, same_name)]
        labels.append(" ".join([name, *parts]))
    return labels


def _part(key: str, value: Value) -> str:
    """A parameter of a policy in words; a class by its name."""
    name = key.removeprefix("policy.")
    return f"{name.removesuffix('._target_')}={str(value).rpartition('.')[2] if name.endswith('_target_') else value}"


def _refining(keys: Iterable[str], flats: Sequence[Flat], blocks: Sequence[tuple[str, ...]]) -> list[str]:
    """The keys that split blocks of runs further, one after the other."""
    kept = []
    for key in keys:
        split = [(*block, *_identity([flat.get(key)])) for block, flat in zip(blocks, flats, strict=True)]
        if len(set(split)) > len(set(blocks)):
            kept.append(key)
            blocks = split
    return kept


def _shared(flats: Sequence[Flat]) -> dict[str, Value]:
    return {
        _label(key): flats[0][key]
        for key in sorted(flats[0], key=_key_order)
        if "." not in _label(key) and not _is_policy(key) and not _varies(key, flats) and flats[0][key] is not None
    }


def _all_keys(flats: Sequence[Flat]) -> Iterator[str]:
    return iter(dict.fromkeys(key for flat in flats for key in flat))


def _varies(key: str, flats: Sequence[Flat]) -> bool:
    return len({_identity([flat.get(key)]) for flat in flats}) > 1


def _is_policy(key: str) -> bool:
    return key.startswith("policy.")


def _is_seed(key: str) -> bool:
    return key.endswith("seed")


def _label(key: str) -> str:
    return key.removesuffix(".name")


def identity_keys(runs: RunSet) -> list[str]:
    """Every key that tells where a row comes from, shared or not, in the order to show them."""
    return sorted({*GROUPS, *runs.shared, *runs.keys}, key=_key_order)


def _key_order(key: str) -> tuple[int, str]:
    label = _label(key)
    return (GROUPS.index(label) if label in GROUPS else len(GROUPS), label)


def _identity(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(repr(float(value)) if isinstance(value, int) else repr(value) for value in values)


def _rank(value: Value) -> tuple[bool, float, str]:
    number = float(value) if isinstance(value, int | float) else 0.0
    return (not isinstance(value, int | float), number, str(value))

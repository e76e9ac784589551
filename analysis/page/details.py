"""What the page tells of one run: timelines, distributions, energy, clocks, the state space of decode, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana import checks
from voltana.analysis import energy
from voltana.analysis.page.packed import buckets, packed, rounded
from voltana.analysis.runs import Run
from voltana.analysis.tables import ABSENT
from voltana.errors import UserError
from voltana.record import COMPLETED, FAILED
from voltana.record.gpus import gpu_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from voltana.prediction.ecopred import EcoPred

    Numbers = NDArray[np.float64]

QUANTITIES = (
    ("clock_mhz", "SM clock", "MHz"),
    ("batch_size", "Batch", "requests"),
    ("queued", "Queue", "requests"),
    ("kv_tokens", "KV cache", "tokens"),
    ("power_w", "Power", "W"),
)
"""Columns of `instances.parquet` that a timeline draws, their titles and units."""
BUCKETS = 600
"""Spans of time of a timeline; of each the least, the mean and the greatest value are kept."""
_MOST_INSTANCES = 8
_PATH_POINTS = 240
_MOST_PATHS = 4
_MOST_CLOCKS = 24
_MOST_LEVELS = 6
_MOST_FAILURES = 12
_OF_FAILURES = (
    "request_id",
    "arrival_s",
    "status",
    "input_tokens",
    "output_tokens",
    "prefill_instance",
    "decode_instance",
)
PERCENT = (*range(0, 99, 2), 98.5, 99, 99.5, 99.9, 100)
"""Percentiles of a distribution."""


class Chosen(NamedTuple):
    """A run that is told in detail: under which anchor, and whether with its timelines."""

    run: Run
    anchor: str
    timeline: bool


def details(chosen: Chosen) -> dict[str, Any]:
    """One run as the script of the page takes it.

    Raises:
        UserError: its tables cannot be read.
    """
    run = chosen.run
    requests, instances = run.record.requests(), run.record.instances()
    names = _instances(instances)
    end_s = run.number("end_s", may_lack=True)
    if end_s is None and not instances.empty:
        end_s = float(instances["time_s"].max())
    return {
        "id": chosen.anchor,
        "distributions": {kind: _distribution(requests, kind) for kind in ("ttft", "itl", "e2e")},
        "slo": {kind: rounded(run.number("slo", f"{kind}_ms", may_lack=True)) for kind in ("ttft", "itl")},
        "energy": _energy(run, instances),
        "residency": residency(instances, end_s),
        "states": _states(run, instances, names, end_s),
        "failures": _failures(run, requests),
        "timeline": _timeline(instances, names, end_s) if chosen.timeline else None,
    }


def _instances(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The names of the instances of each phase, prefill first."""
    found: dict[str, list[str]] = {"prefill": [], "decode": []}
    for (phase, name), _ in frame.groupby(["phase", "instance"]):
        found.setdefault(str(phase), []).append(str(name))
    return {phase: names for phase, names in found.items() if names}


def _distribution(requests: pd.DataFrame, kind: str) -> list[Any] | None:
    """Percentiles in ms, `PERCENT` of them; None where no request tells any."""
    import numpy as np

    if kind == "e2e":
        seconds = requests["finish_s"] - requests["arrival_s"]
    else:
        seconds = requests["ttft_s" if kind == "ttft" else "mean_itl_s"]
    known = seconds[requests["status"] == COMPLETED].dropna().to_numpy(float)
    return None if not len(known) else [rounded(1e3 * at, 4) for at in np.percentile(known, PERCENT)]


def _energy(run: Run, instances: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per instance: its energy, and its parts where they are known."""
    told = run.record.summary.get("energy_j")
    totals = told.get("per_instance") if isinstance(told, Mapping) else None
    parts = energy.split(run.record, instances) or {}
    names = dict.fromkeys([*(totals if isinstance(totals, Mapping) else ()), *parts])
    rows = []
    for name in names:
        joules = parts.get(name)
        total = totals.get(name) if isinstance(totals, Mapping) else None
        rows.append(
            {
                "name": name,
                "total": rounded(sum(joules.parts) if joules and total is None else total),
                "parts": [rounded(part) for part in joules.parts] if joules else None,
            }
        )
    return rows


def _spans(own: pd.DataFrame, end_s: float) -> Numbers:
    import numpy as np

    time = own["time_s"].to_numpy(float)
    return np.clip(np.diff(np.append(time, max(end_s, time[-1]))), 0.0, None)


def residency(instances: pd.DataFrame, end_s: float | None) -> dict[str, list[list[Any]]]:
    """Per phase: (clock MHz, share of the time of its instances), by rising clock; many clocks in equal bins."""
    import numpy as np

    found: dict[str, list[list[Any]]] = {}
    for phase, rows in instances.groupby("phase"):
        clock = rows["clock_mhz"].to_numpy(float)
        span = np.concatenate([_spans(own, end_s or 0.0) for _, own in rows.groupby("instance")])
        known = ~np.isnan(clock)
        total = float(span[known].sum())
        if not total:
            continue
        distinct, place = np.unique(clock[known], return_inverse=True)
        shares = dict(zip(distinct.tolist(), np.bincount(place, span[known]).tolist(), strict=True))
        if len(shares) > _MOST_CLOCKS:
            low, high = min(shares), max(shares)
            width = 15.0 * math.ceil((high - low) / _MOST_CLOCKS / 15.0)
            binned: dict[float, float] = {}
            for mhz, seconds in shares.items():
                middle = low + (int((mhz - low) / width) + 0.5) * width
                binned[middle] = binned.get(middle, 0.0) + seconds
            shares = binned
        found[str(phase)] = [[rounded(mhz), rounded(seconds / total, 4)] for mhz, seconds in sorted(shares.items())]
    return found


def _states(
    run: Run, instances: pd.DataFrame, names: Mapping[str, Sequence[str]], end_s: float | None
) -> dict[str, Any] | None:
    """The path of decode instances over (requests, KV tokens), and the boundaries of the policy's levels."""
    import numpy as np

    paths = []
    for name in names.get("decode", ())[:_MOST_PATHS]:
        own = instances[(instances["instance"] == name)].dropna(subset=["batch_size", "kv_tokens"])
        if own.empty:
            continue
        time = own["time_s"].to_numpy(float)
        at = np.linspace(time[0], max(end_s or 0.0, time[-1]), _PATH_POINTS)
        rows = np.clip(np.searchsorted(time, at, side="right") - 1, 0, None)
        paths.append(
            {
                "name": name,
                "n": own["batch_size"].to_numpy(int)[rows].tolist(),
                "kv": own["kv_tokens"].to_numpy(int)[rows].tolist(),
            }
        )
    if not paths:
        return None
    most = max(max(path["n"]) for path in paths)
    return {"paths": paths, "boundaries": boundaries(run, max(16, round(1.15 * most)))}


def boundaries(run: Run, most_requests: int) -> dict[str, Any] | None:
    """Up to how many KV tokens each clock level is predicted to keep the decode budget, over requests in the batch.

    Levels and margin are those of the policy's decode router, else of its decode controller; the predictor is the file
    that the run was made with, if it is still there.
    """
    policy = run.record.config.get("policy")
    who = next((key for key in ("decode_router", "decode_controller") if _has_levels(policy, key)), None)
    predictor = _predictor(run)
    slo_ms = run.number("slo", "itl_ms", may_lack=True)
    if who is None or predictor is None or slo_ms is None or not isinstance(policy, Mapping):
        return None
    part = policy[who]
    try:
        gpu = gpu_of(run.record.config, "decode")
        clocks = range(gpu["clock_min_mhz"], gpu["clock_max_mhz"] + 1, gpu["clock_step_mhz"])
        levels = checks.levels("levels_mhz", part["levels_mhz"], clocks)
        budget_s = checks.budget_s(slo_ms / 1e3, part["margin"], part.get("objective_ms"))
    except (UserError, KeyError, TypeError):
        return None
    if len(levels) > _MOST_LEVELS:
        levels = tuple(levels[round(i * (len(levels) - 1) / (_MOST_LEVELS - 1))] for i in range(_MOST_LEVELS))
    return {"of": who, "levels": [_boundary(predictor, level, budget_s, most_requests) for level in levels]}


def _boundary(predictor: EcoPred, clock_mhz: int, budget_s: float, most_requests: int) -> dict[str, Any]:
    sizes = sorted({round(1 + i * (most_requests - 1) / 60) for i in range(61)})
    limits: list[int | None] = []
    for size in sizes:
        fixed = predictor.decode_s(size, 0, clock_mhz)
        per_token = predictor.decode_s(size, 1e6, clock_mhz) / 1e6 - fixed / 1e6
        room = (budget_s - fixed) / per_token if per_token > 0 else None
        limits.append(None if room is None or room < 0 else round(room))
    return {"clock": clock_mhz, "n": sizes, "kv": limits}


def _has_levels(policy: object, key: str) -> bool:
    part = policy.get(key) if isinstance(policy, Mapping) else None
    return isinstance(part, Mapping) and {"levels_mhz", "margin"} <= part.keys()


def _predictor(run: Run) -> EcoPred | None:
    from voltana.prediction.ecopred import EcoPred
    from voltana.record.provenance import still_there

    path = still_there(run.record, "predictor")
    try:
        return None if path is None else EcoPred.load(path)
    except UserError:
        return None


def _failures(run: Run, requests: pd.DataFrame) -> dict[str, Any]:
    """How many failed and did not end, where and when the first of them were."""
    import numpy as np

    lost = requests[requests["status"] != COMPLETED]
    rows = [
        [rounded(each, 6) if isinstance(each, float) else ABSENT if each is None else each for each in row]
        for row in lost[list(_OF_FAILURES)]
        .head(_MOST_FAILURES)
        .astype(object)
        .replace({np.nan: None})
        .to_numpy()
        .tolist()
    ]
    failed = int((lost["status"] == FAILED).sum())
    return {"failed": failed, "unfinished": len(lost) - failed, "servers": list(run.servers_ended), "rows": rows}


def _timeline(
    instances: pd.DataFrame, names: Mapping[str, Sequence[str]], end_s: float | None
) -> dict[str, Any] | None:
    """Least, mean and greatest value of every quantity in each of `BUCKETS` spans, per instance."""
    import numpy as np

    if instances.empty:
        return None
    each = _MOST_INSTANCES // max(1, len(names))
    shown = [(name, phase) for phase, found in names.items() for name in found[:each]]
    start = float(instances["time_s"].min())
    edges = np.linspace(start, max(end_s or 0.0, float(instances["time_s"].max())), BUCKETS + 1)
    series = []
    for name, phase in shown:
        own = instances[instances["instance"] == name]
        time = own["time_s"].to_numpy(float)
        told = {}
        for column, *_ in QUANTITIES:
            low, mean, high = buckets(time, own[column].to_numpy(float), edges)
            told[column] = {"low": packed(low), "mean": packed(mean), "high": packed(high)}
        series.append({"name": name, "phase": phase, "values": told})
    return {
        "from": rounded(start, 7),
        "to": rounded(float(edges[-1]), 7),
        "instances": series,
        "left_out": sum(map(len, names.values())) - len(shown),
    }

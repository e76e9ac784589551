"""What the page tells of all runs: what was run, the verdict in words, the table, the curves, the trade-off."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from voltana.analysis import style, tables
from voltana.analysis.equal import DIAL, OVER_RATE
from voltana.analysis.figures import ROWS, Axis, line_name, mean_of, panels_of, reach, usual_order
from voltana.analysis.page.packed import rounded
from voltana.analysis.runs import RATE, Run, RunSet, Value
from voltana.analysis.tables import EQUAL_SAVING, SAVING, Comparison, Estimate, Row
from voltana.errors import UserError
from voltana.record.gpus import about_gpus

_MOST_PANELS = 24
_MOST_LINES = 5
"""Policies that the verdict tells of; the table has all."""


class Compared(NamedTuple):
    """Runs, their comparison, the policies that it is measured by, and where the page tells a run in detail."""

    runs: RunSet
    comparison: Comparison
    baseline: str
    oracle: str | None
    anchors: Mapping[int, str]
    """By `id` of a run."""

    def anchor(self, row: Row) -> str | None:
        """That of the first run of a row that has one."""
        return next((at for run in self.runs.at(row.setting, row.policy) if (at := self.anchors.get(id(run)))), None)


def in_words(setting: Mapping[str, Value]) -> str:
    """A setting on one line, without what it leaves unset."""
    parts = [
        f"{value:g} requests/s" if key == RATE and _numeric(value) else f"{key} {_plain(value)}"
        for key, value in setting.items()
        if value is not None
    ]
    return ", ".join(parts)


def _numeric(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def looks(names: Sequence[str]) -> dict[str, str]:
    """The colour of every policy."""
    return {name: style.line(name).colour for name in names}


# What was run


def what_was_run(runs: RunSet) -> dict[str, Any]:
    """Shared settings, versions, seeds, the commands that make these runs again, and where they come from."""
    about = [run.record.provenance for run in runs.runs]
    seeds = list(dict.fromkeys(_plain(run.seed) for run in runs.runs))
    sizes = _count(runs.policies(), "policy", "policies"), _count(runs.settings(), "setting", "settings")
    facts = [
        ("Runs", f"{len(runs.runs)} ({', '.join(sizes)})"),
        ("Seeds", _few(seeds)),
        ("Varies", ", ".join(["policy", *runs.keys]) if runs.keys else "policy"),
    ]
    starts = sorted(str(each["started"]) for each in about if each.get("started"))
    libraries = [
        f"{name} {version}" for each in about[:1] for name, version in (each.get("dependencies") or {}).items()
    ]
    origin = [
        ("voltana", _few(_distinct(_version(each) for each in about if each))),
        ("Python", _few(_distinct(each.get("python") for each in about))),
        ("Libraries", ", ".join(libraries)),
        ("Platform", _few(_distinct(each.get("platform") for each in about))),
        ("Host", _few(_distinct(each.get("host") for each in about))),
        ("Started", starts[0] if len(set(starts)) == 1 else f"{starts[0]} to {starts[-1]}" if starts else ""),
        ("Code", _few(_distinct(_code(each) for each in about))),
        ("Power", _few(_distinct(_power(run) for run in runs.runs))),
    ]
    return {
        "facts": facts,
        "shared": [(key, _plain(value)) for key, value in runs.shared.items()],
        "origin": [(label, text) for label, text in origin if text],
        "commands": _distinct(_command(each) for each in about),
    }


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _few(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 8 else f"{', '.join(values[:8])} and {len(values) - 8} more"


def _version(about: Mapping[str, Any]) -> str:
    commit = about.get("commit")
    told = f"{about.get('voltana', '')} ({str(commit)[:10]})" if commit else str(about.get("voltana", ""))
    return f"{told}, with changes not committed" if about.get("dirty") else told


def _code(about: Mapping[str, Any]) -> str | None:
    code = (about.get("depends_on") or {}).get("code") or {}
    return f"sha256 {str(code['sha256'])[:16]}" if "sha256" in code else None


def _power(run: Run) -> str | None:
    about = about_gpus(run.record.config)
    return str(about["power"]) if "power" in about else None


def _command(about: Mapping[str, Any]) -> str | None:
    words = about.get("command")
    if not isinstance(words, list) or not words:
        return None
    return shlex.join([PurePath(str(words[0])).name, *map(str, words[1:])])


# The verdict


class _Told(NamedTuple):
    """A policy against the baseline, over all settings that have both."""

    policy: str
    saved: list[float]
    equal: list[float]
    lost: list[tuple[float, str]]
    """Points of joint attainment less than the baseline, and where."""
    slower_ms: list[float]
    """Median TTFT more than the baseline's."""


def verdict(compared: Compared) -> dict[str, Any]:
    """How much is saved at what cost: a heading, and a line per policy.

    The first saves most at equal attainment over all settings, where one at which it cannot be brought level counts as
    nothing saved.
    """
    rows = compared.comparison.rows
    policies = [name for name in compared.runs.policies() if name not in (compared.baseline, compared.oracle)]
    told = [each for name in policies if (each := _told(rows, name, compared.baseline)).saved]
    if not told:
        return {"lead": _alone(rows), "best": None, "lines": []}
    levelled = any(each.equal for each in told)
    told.sort(key=lambda each: -math.fsum(each.equal if levelled else each.saved) / len(each.saved))
    lines = [_line(each, compared) for each in told[:_MOST_LINES]]
    if len(told) > _MOST_LINES:
        lines.append({"policy": "", "text": f"{len(told) - _MOST_LINES} more policies are in the table."})
    return {"lead": _lead(told[0], compared.baseline), "best": told[0].policy, "lines": lines}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _told(rows: Sequence[Row], policy: str, baseline: str) -> _Told:
    told = _Told(policy, [], [], [], [])
    bases = {tuple(map(repr, row.setting.values())): row for row in rows if row.policy == baseline}
    for row in rows:
        base = bases.get(tuple(map(repr, row.setting.values())))
        saved, equal = row.values[SAVING.name], row.values[EQUAL_SAVING.name]
        if row.policy != policy or base is None or saved is None:
            continue
        told.saved.append(saved.mean)
        told.equal.extend([] if equal is None else [equal.mean])
        for name, into in (("joint_attainment_pct", told.lost), ("ttft_p50_ms", told.slower_ms)):
            ours, theirs = row.values[name], base.values[name]
            if ours is None or theirs is None:
                continue
            if into is told.lost:
                told.lost.append((theirs.mean - ours.mean, in_words(row.setting)))
            else:
                told.slower_ms.append(ours.mean - theirs.mean)
    return told


def _lead(best: _Told, baseline: str) -> str:
    """How much, at what cost."""
    average = " on average" if len(best.saved) > 1 else ""
    lead = f"{best.policy} saves {_percent(_mean(best.saved))} of the energy of {baseline}{average}"
    if not best.lost:
        return lead
    lost = _mean([points for points, _ in best.lost])
    return f"{lead}; {_points(lost)} requests meet both objectives"


def _line(each: _Told, compared: Compared) -> dict[str, Any]:
    count = len(each.saved)
    over = f" over {count} settings ({_range(each.saved)})" if count > 1 else ""
    text = f"uses {_percent(_mean(each.saved))} less energy than {compared.baseline}{over}"
    if each.equal:
        beyond = count - len(each.equal)
        text += f"; {_percent(_mean(each.equal))} at equal attainment"
        text += f" at {len(each.equal)} of them (elsewhere {compared.baseline} is level at no rate)" if beyond else ""
    if each.lost:
        mean, (worst, where) = _mean([points for points, _ in each.lost]), max(each.lost)
        at_worst = f", at worst {_points(worst)} ({where})" if count > 1 else ""
        average = " on average" if count > 1 else ""
        text += f". {_points(mean).capitalize()} requests meet both objectives{average}{at_worst}"
    if each.slower_ms:
        slower = _mean(each.slower_ms)
        text += f". Median TTFT: {abs(slower):.0f} ms {'longer' if slower >= 0 else 'shorter'}"
    return {"policy": each.policy, "text": f"{text}."}


def _percent(value: float) -> str:
    return f"{value:.1f} %"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f} %"


def _points(lost: float) -> str:
    if abs(lost) < 0.05:
        return "as many"
    return f"{abs(lost):.1f} points {'fewer' if lost > 0 else 'more'}"


def _alone(rows: Sequence[Row]) -> str:
    """What is told where nothing is compared: the first row's numbers."""
    row = rows[0]
    used, met = row.values["energy_kj"], row.values["joint_attainment_pct"]
    where = f" at {in_words(row.setting)}" if row.setting else ""
    energy = "an energy that was not metered" if used is None else f"{used.mean:.1f} kJ"
    meets = "" if met is None else f"; {met.mean:.1f} % of its requests met both objectives"
    return f"{row.policy}{where} used {energy}{meets}"


# The table


def table(compared: Compared) -> dict[str, Any]:
    """The rows of `voltana-compare columns=report`: their text, and the numbers by which they are sorted."""
    comparison = compared.comparison
    header, texts = tables.text_rows(comparison, "report")
    names = tables.numbers_of(comparison, "report")
    lead = len(header) - len(names)
    rows = []
    for row, cells in zip(comparison.rows, texts, strict=True):
        numbers = [row.values[name] for name in names]
        rows.append(
            {
                "cells": cells,
                "sort": [
                    *(_sort_key(cell) for cell in cells[:lead]),
                    *(value and rounded(value.mean, 8) for value in numbers),
                ],
                "policy": row.policy,
                "run": compared.anchor(row),
            }
        )
    return {"header": header, "text_columns": lead, "policy_column": len(comparison.keys), "rows": rows}


def _sort_key(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def how_levelled(comparison: Comparison) -> list[str]:
    """How the savings at equal attainment were found, where there are any."""
    ways = {DIAL: "each policy's own dial", OVER_RATE: "the baseline's rate"}
    used = [words for way, words in ways.items() if any(row.levelled == way for row in comparison.rows)]
    what = "At equal attainment: the energies compared where both meet both objectives as often, interpolated over"
    return [f"{what} {' or '.join(used)}; {tables.ABSENT} where they never do."] if used else []


# Curves


def _first_number(runs: RunSet) -> str | None:
    """The key along the axis where none was asked for: the rate, else the first number that varies."""
    flats = [dict(run.flat) for run in runs.runs]
    varying = [RATE, *(key for key in runs.keys if key != RATE)]
    return next((key for key in varying if key in runs.keys and all(_numeric(flat.get(key)) for flat in flats)), None)


def curves(compared: Compared, x: str) -> dict[str, Any] | None:
    """TTFT attainment, ITL attainment and energy over the axis: per panel and line (place, estimates per row).

    Args:
        compared: the runs.
        x: a configuration key, or auto.

    Returns:
        None where no line has two places.

    Raises:
        UserError: the key that was asked for is none of the runs', or makes too many panels.
    """
    runs, asked = compared.runs, x != "auto"
    key = x if asked else _first_number(runs)
    if key is None:
        return None
    axis_of = Axis(key, runs)
    try:
        found = panels_of(runs, axis_of, _MOST_PANELS)
    except UserError:
        if asked:
            raise
        return None
    panels, longest = [], 0
    for title, members in found.items():
        names = sorted({line_name(run, axis_of) for run in members}, key=usual_order)
        lines = [
            _curve(name, [run for run in members if line_name(run, axis_of) == name], axis_of, compared)
            for name in names
        ]
        longest = max(longest, *(len(line["points"]) for line in lines))
        panels.append({"title": ", ".join(title), "lines": lines})
    if longest < 2:
        return None
    return {
        "x": axis_of.label,
        "words": axis_of.words,
        "rows": [{"label": row.label, "percent": row.scale == 100} for row in ROWS],
        "panels": panels,
    }


def _curve(name: str, runs: Sequence[Run], axis_of: Axis, compared: Compared) -> dict[str, Any]:
    points = []
    for place in sorted({axis_of.at(run) for run in runs}):
        here = [run for run in runs if axis_of.at(run) == place]
        points.append(
            {
                "x": rounded(place, 7),
                "y": [_interval(mean_of(here, row)) for row in ROWS],
                "starved": any(run.starved for run in here),
                "run": next((at for run in here if (at := compared.anchors.get(id(run)))), None),
            }
        )
    return {"name": name, "colour": style.line(name).colour, "points": points}


def _interval(value: Estimate | None) -> list[Any] | None:
    """Mean, least and most of the interval that is drawn."""
    return None if value is None else [rounded(value.mean), *(rounded(end) for end in reach(value))]


# Trade-off


def tradeoff(compared: Compared) -> dict[str, Any] | None:
    """Energy saved (without a baseline: used) against joint attainment, a panel per setting; and what nothing beats."""
    rows = compared.comparison.rows
    saves = any(row.values[SAVING.name] for row in rows)
    metric = SAVING.name if saves else "energy_kj"
    blocks: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.values[metric] and row.values["joint_attainment_pct"]:
            blocks.setdefault(tuple(map(repr, row.setting.values())), []).append(row)
    if all(len(block) < 2 for block in blocks.values()):
        return None
    label = f"Energy saved against {compared.baseline} (%)" if saves else "Energy (kJ)"
    panels = [_scatter(block, metric, compared, 1 if saves else -1) for block in list(blocks.values())[:_MOST_PANELS]]
    return {
        "x": label,
        "y": "Both objectives met (%)",
        "left_out": max(0, len(blocks) - _MOST_PANELS),
        "panels": panels,
    }


def _scatter(rows: Sequence[Row], metric: str, compared: Compared, sign: int) -> dict[str, Any]:
    places = [
        (sign * value.mean, met.mean)
        for row in rows
        if (value := row.values[metric]) and (met := row.values["joint_attainment_pct"])
    ]
    points = []
    for row, place in zip(rows, places, strict=True):
        beaten = any(other[0] >= place[0] and other[1] >= place[1] and other != place for other in places)
        points.append(
            {
                "name": row.policy,
                "colour": style.line(row.policy).colour,
                "x": _interval(row.values[metric]),
                "y": _interval(row.values["joint_attainment_pct"]),
                "front": not beaten,
                "starved": bool(row.starved),
                "run": compared.anchor(row),
            }
        )
    return {"title": in_words(rows[0].setting) or "all runs", "points": points}

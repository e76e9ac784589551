"""The comparison of policies against a baseline, as rows of numbers and as text."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Literal, NamedTuple

from voltana.analysis.equal import Equal
from voltana.analysis.runs import GROUPS, Run, RunSet, Value, identity_keys, replay_of
from voltana.errors import UserError
from voltana.intervals import half_width
from voltana.record import RunRecord, holder
from voltana.record.gpus import about_gpus
from voltana.record.resolution import RESOLVED_POINTS, UNCLOCKED, difference
from voltana.record.summary import PERCENTILES, energy_rests_on

if TYPE_CHECKING:
    from rich.table import Table

Columns = Literal["short", "full", "report"]

ABSENT = "-"
STARVED = "*"
"""Marks a row whose numbers are the machine's, not the policy's."""


LEAST_FOR_INTERVAL = 3
"""Of fewer repetitions no confidence interval is told: that of two is more than six times their distance either way."""


class Estimate(NamedTuple):
    """The mean over repetitions, the half width of its 95 % confidence interval (None below three), their number
    and the least and the greatest of them."""

    mean: float
    ci95: float | None
    n: int
    least: float
    most: float


class Metric(NamedTuple):
    """A column: where it is in summary.json and how it is shown."""

    name: str
    path: tuple[str, ...]
    scale: float = 1.0
    decimals: int = 1
    may_lack: bool = False
    """Whether records of earlier versions may lack it."""

    def of(self, run: Run) -> float | None:
        """The number of a run, in the unit of the column."""
        number = run.number(*self.path, may_lack=self.may_lack)
        return None if number is None else number * self.scale

    def of_known(self, run: Run) -> float | None:
        """The number of a run that need not have it."""
        return self._replace(may_lack=True).of(run)


_ENERGY = ("energy_j", "total")

METRICS = (
    Metric("energy_kj", _ENERGY, 1e-3),
    Metric("ttft_attainment_pct", ("ttft_attainment",), 100),
    Metric("itl_attainment_pct", ("itl_attainment",), 100),
    Metric("joint_attainment_pct", ("joint_attainment",), 100),
    Metric("goodput_per_s", ("goodput_per_s",), may_lack=True),
    *(Metric(f"ttft_{q}_ms", ("ttft_ms", q), decimals=0, may_lack=q == "p95") for q in PERCENTILES),
    *(Metric(f"itl_{q}_ms", ("itl_ms", q), may_lack=q == "p95") for q in PERCENTILES),
    *(Metric(f"e2e_{q}_ms", ("e2e_ms", q), decimals=0, may_lack=True) for q in ("mean", *PERCENTILES)),
    Metric("energy_per_request_j", ("energy_per_request_j",), decimals=2, may_lack=True),
    Metric("energy_per_output_token_j", ("energy_per_output_token_j",), decimals=3),
    Metric("requests_completed", ("requests", "completed"), decimals=0),
    Metric("requests_failed", ("requests", "failed"), decimals=0),
)
SAVING = Metric("saving_pct", ())
EQUAL_SAVING = Metric("saving_at_equal_attainment_pct", ())
OVER_ORACLE = Metric("energy_over_oracle", (), decimals=3)
OVER_BOUND = Metric("energy_over_bound", ("energy_bound_j",), decimals=3)
OVER_STATIONARY = Metric("energy_over_stationary", ("energy_stationary_j",), decimals=3)
"""The path of these two is that of the least energy, which a run has only where it was worked out."""

_RELATIVE = (SAVING, EQUAL_SAVING, OVER_ORACLE, OVER_BOUND, OVER_STATIONARY)
_DECIMALS = {metric.name: metric.decimals for metric in (*METRICS, *_RELATIVE)}

_HEADERS: Mapping[Columns, Mapping[str, tuple[str, ...]]] = {
    "short": {
        "energy kJ": ("energy_kj",),
        "saving %": ("saving_pct",),
        "TTFT met %": ("ttft_attainment_pct",),
        "ITL met %": ("itl_attainment_pct",),
        "both met %": ("joint_attainment_pct",),
        "TTFT p99 ms": ("ttft_p99_ms",),
        "ITL p99 ms": ("itl_p99_ms",),
    },
    "full": {
        "energy kJ": ("energy_kj",),
        "saving %": ("saving_pct",),
        "J/token": ("energy_per_output_token_j",),
        "TTFT met %": ("ttft_attainment_pct",),
        "ITL met %": ("itl_attainment_pct",),
        "both met %": ("joint_attainment_pct",),
        "goodput 1/s": ("goodput_per_s",),
        **{
            f"{title} ms {'/'.join(PERCENTILES)}": tuple(f"{kind}_{q}_ms" for q in PERCENTILES)
            for title, kind in (("TTFT", "ttft"), ("ITL", "itl"), ("E2E", "e2e"))
        },
        "done/failed": ("requests_completed", "requests_failed"),
    },
    "report": {
        "energy kJ": ("energy_kj",),
        "saving %": ("saving_pct",),
        "both met %": ("joint_attainment_pct",),
        "TTFT met %": ("ttft_attainment_pct",),
        "ITL met %": ("itl_attainment_pct",),
        "goodput 1/s": ("goodput_per_s",),
        "J/request": ("energy_per_request_j",),
        "J/token": ("energy_per_output_token_j",),
        "TTFT p99 ms": ("ttft_p99_ms",),
        "ITL p99 ms": ("itl_p99_ms",),
    },
}
_AT_EQUAL = "at equal attainment %"
_DISTANCES = {
    _AT_EQUAL: (EQUAL_SAVING.name,),
    "/oracle": (OVER_ORACLE.name,),
    "/bound": (OVER_BOUND.name,),
    "/stationary": (OVER_STATIONARY.name,),
}
"""Columns that are shown, beside the saving, only where there is something in them; the first in the report alone."""


@dataclass(frozen=True)
class Row:
    """A policy at a setting.

    `origin` has every key that identifies the row, `setting` those that vary between rows; `slo` the objectives, ms;
    `starved` what was late beyond its bound; `submitted` counts the requests of all its runs; `levelled` how its saving
    at equal attainment was found (`voltana.analysis.equal`).
    """

    setting: dict[str, Value]
    policy: str
    runs: int
    values: dict[str, Estimate | None]
    origin: dict[str, Value]
    slo: dict[str, float | None]
    starved: tuple[str, ...]
    submitted: int
    levelled: str | None


@dataclass(frozen=True)
class Comparison:
    """Every policy at every setting, the baseline first in each block; `shared` is what all rows have in common."""

    keys: list[str]
    rows: list[Row]
    notes: list[str]
    shared: dict[str, Value]


def columns_option(found: object) -> Columns:
    """The `columns` option: short, full, or those of the report.

    Raises:
        UserError: it is none of them.
    """
    for name in _HEADERS:
        if found == name:
            return name
    raise UserError(f"columns: found {found}, allowed: {', '.join(_HEADERS)}")


def compare(runs: RunSet, baseline: str, oracle: str | None = None, *, baseline_may_lack: bool = False) -> Comparison:
    """Number the policies.

    Args:
        runs: what is compared.
        baseline: the policy whose energy the others save, at the same setting and seed.
        oracle: the policy whose energy theirs is divided by, at the same setting and seed; it need not be there.
        baseline_may_lack: whether runs without one of the baseline will do: nothing is saved then.

    Raises:
        UserError: there is no run of the baseline at all.
    """
    policies = runs.policies()
    if baseline not in policies and not baseline_may_lack:
        cut = ", ".join([*map(_unfinished, runs.unfinished), *map(str, runs.interrupted)])
        left_out = f"; left out, as they did not end: {cut}" if cut else ""
        raise UserError(f"baseline: found {baseline}, allowed: {', '.join(policies)}{left_out}")
    policies.sort(key=lambda policy: policy != baseline)
    rows, without = [], []
    keys = identity_keys(runs)
    equal = Equal(runs, baseline)
    for setting in runs.settings():
        base = runs.at(setting, baseline)
        best = runs.at(setting, oracle) if oracle is not None else []
        if not base:
            without.append(_told(setting))
        present = [(policy, runs.at(setting, policy)) for policy in policies]
        origin = {key: setting.get(key, runs.shared.get(key)) for key in keys}
        rows += [_row(setting, origin, policy, found, base, best, equal) for policy, found in present if found]
    where = "" if baseline not in policies else f" at {'; '.join(without)}"
    notes = [f"No run of {baseline}{where}: no saving there."] if without else []
    notes += [*few_requests(rows, baseline), *_notes(runs, rows)]
    return Comparison(runs.keys, rows, notes, runs.shared)


def _row(
    setting: dict[str, Value],
    origin: dict[str, Value],
    policy: str,
    runs: Sequence[Run],
    base: Sequence[Run],
    best: Sequence[Run],
    equal: Equal,
) -> Row:
    values = {
        metric.name: estimate(number for run in runs if (number := metric.of(run)) is not None) for metric in METRICS
    }
    values[SAVING.name] = estimate(100 * (1 - ratio) for ratio in _energy_over(runs, base))
    savings, levelled = equal.savings(setting, policy)
    values[EQUAL_SAVING.name] = estimate(savings)
    values[OVER_ORACLE.name] = estimate(_energy_over(runs, best))
    for least in (OVER_BOUND, OVER_STATIONARY):
        values[least.name] = estimate(_energy_over_least(runs, least))
    slo = {key: runs[0].number("slo", key, may_lack=True) for key in ("ttft_ms", "itl_ms")}
    starved = tuple(dict.fromkeys(reason for run in runs for reason in run.starved))
    submitted = sum(int(run.number("requests", "submitted", may_lack=True) or 0) for run in runs)
    return Row(setting, policy, len(runs), values, origin, slo, starved, submitted, levelled)


def _energy_over(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """Energy run by run over that of others with the same seed (their mean, where it was repeated)."""
    reference = {
        seed: estimate(energy for run in others if run.seed == seed and (energy := run.number(*_ENERGY)) is not None)
        for seed in {run.seed for run in others}
    }
    return [
        used / expected.mean
        for run in runs
        if (used := run.number(*_ENERGY)) is not None and (expected := reference.get(run.seed)) and expected.mean
    ]


def _energy_over_least(runs: Sequence[Run], metric: Metric) -> list[float]:
    """Energy over the least energy of the run itself, where that was worked out."""
    return [
        used / least for run in runs if (least := metric.of_known(run)) and (used := run.number(*_ENERGY)) is not None
    ]


def estimate(samples: Iterable[float]) -> Estimate | None:
    """Mean and 95 % confidence interval by Student's t, the latter of three or more; None without samples."""
    numbers = list(samples)
    count = len(numbers)
    if not count:
        return None
    mean = math.fsum(numbers) / count
    half = half_width(numbers) if count >= LEAST_FOR_INTERVAL else None
    return Estimate(mean, half, count, min(numbers), max(numbers))


def _notes(runs: RunSet, rows: Sequence[Row]) -> list[str]:
    notes = []
    fewest, most = min(row.runs for row in rows), max(row.runs for row in rows)
    if most > 1:
        told = f"{most}" if fewest == most else f"{fewest} to {most}"
        interval = f"± 95 % confidence interval from {LEAST_FOR_INTERVAL} on" if fewest < LEAST_FOR_INTERVAL else ""
        if most < LEAST_FOR_INTERVAL:
            interval = "too few for an interval"
        start = "Mean over" if interval else "Mean ± 95 % confidence interval over"
        notes.append(f"{start} {told} runs{interval and ', '}{interval}; percentiles and counts are means.")
    replays = dict.fromkeys(filter(None, (replay_of(run.record) for run in runs.runs)))
    if replays:
        notes.append(f"Traces at their own times: {'; '.join(replays)}.")
    notes += [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(map(_power_note, runs.runs)) if note]
    notes += _starved_notes(rows) + _died_notes(runs) + unclocked_note(runs.runs)
    if runs.repeated:
        paths = ", ".join(str(path) for path in runs.repeated)
        notes.append(f"Left out, the same configuration as another run: {paths}.")
    if runs.interrupted:
        notes.append(f"Left out, interrupted: {', '.join(str(path) for path in runs.interrupted)}.")
    if runs.unfinished:
        notes.append(f"Left out, unfinished: {', '.join(map(_unfinished, runs.unfinished))}.")
    sweeps = [f"{sweep} ({count} runs)" for sweep, count in runs.sweeps().items()]
    if len(sweeps) > 1:
        notes.append(f"Runs of {len(sweeps)} sweeps are mixed here: {'; '.join(sweeps)}.")
    return notes


def _power_note(run: Run) -> str:
    return energy_rests_on(about_gpus(run.record.config))


def _starved_notes(rows: Sequence[Row]) -> list[str]:
    marked = [row for row in rows if row.starved]
    if not marked:
        return []
    told = [f"{' '.join([row.policy, *_parts(row.setting)])}: {'; '.join(row.starved)}" for row in marked]
    return [f"{STARVED} starved, the numbers are the machine's, not the policy's: {' | '.join(told)}."]


def _died_notes(runs: RunSet) -> list[str]:
    told = [
        f"{' '.join([run.policy, *_parts(run.setting)])}: {', '.join(names)}"
        for run in runs.runs
        if (names := run.servers_ended)
    ]
    return [f"Servers died in runs shown here: {'; '.join(told)}."] if told else []


def few_requests(rows: Sequence[Row], baseline: str) -> list[str]:
    """A line on what so few requests cannot tell; none where they can, or where repetitions tell it themselves."""
    base = {_told(row.setting): row for row in rows if row.policy == baseline}
    pairs = [(row, base[_told(row.setting)]) for row in rows if row.policy != baseline and _told(row.setting) in base]
    coarse = [(row, found) for row, other in pairs if (found := _apart(row, other)) and found.half > RESOLVED_POINTS]
    if not coarse:
        return []
    counts = sorted({row.submitted for pair in pairs for row in pair})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    points = math.ceil(max(found.half for _, found in coarse))
    doubtful = [" ".join([row.policy, *_parts(row.setting)]) for row, found in coarse if found.doubtful]
    chance = f", as may be those of {'; '.join(doubtful)}" if doubtful else ""
    return [
        f"Few requests, {told} a row: differences of attainment from {baseline} below {points} points may be chance"
        f"{chance} (95 % confidence, requests taken as independent, which those of one run are not quite)."
    ]


class _Difference(NamedTuple):
    """Of the share of requests that meet both objectives, in points."""

    half: float
    """Half the width of its confidence interval."""
    doubtful: bool
    """Whether there is a difference, and zero in the interval."""


def _apart(row: Row, other: Row) -> _Difference | None:
    met, base = row.values["joint_attainment_pct"], other.values["joint_attainment_pct"]
    if met is None or base is None or met.ci95 is not None or not row.submitted or not other.submitted:
        return None
    low, high = difference(met.mean / 100, row.submitted, base.mean / 100, other.submitted)
    return _Difference(50 * (high - low), met.mean != base.mean and low <= 0 <= high)


def unclocked_note(runs: Sequence[Run]) -> list[str]:
    """A line on runs in which latencies are not the policy's."""
    return [UNCLOCKED] if any(run.unclocked for run in runs) else []


def _unfinished(record: RunRecord) -> str:
    who = holder(record.folder)
    return f"{record.folder} ({who} writes it)" if who else str(record.folder)


def caption(runs: RunSet) -> str:
    """What all runs have in common, on one line."""
    return _told(runs.shared)


def _told(setting: Mapping[str, Value]) -> str:
    return " ".join(_parts(setting)) or "these runs"


def _parts(setting: Mapping[str, Value]) -> list[str]:
    return [f"{key}={_plain(value)}" for key, value in setting.items()]


def _plain(value: Value) -> str:
    """A value on one line."""
    if isinstance(value, float):
        return f"{value:g}"
    return ABSENT if value is None else " ".join(str(value).split())


def _headers(comparison: Comparison, columns: Columns) -> dict[str, tuple[str, ...]]:
    """Titles of the columns and the numbers in them."""
    known = {
        title: names
        for title, names in _DISTANCES.items()
        if (columns == "report" or title != _AT_EQUAL)
        and any(row.values[name] is not None for row in comparison.rows for name in names)
    }
    titles = list(_HEADERS[columns].items())
    at = 1 + [title for title, _ in titles].index("saving %")
    return dict([*titles[:at], *known.items(), *titles[at:]])


def text_rows(comparison: Comparison, columns: Columns) -> tuple[list[str], list[list[str]]]:
    """The table as text, without what all rows share: its header, its rows."""
    headers = _headers(comparison, columns)
    repeated = {"runs"} if len({row.runs for row in comparison.rows}) > 1 else set()
    header = [*comparison.keys, "policy", *repeated, *headers]
    rows = [
        [
            *(_plain(value) for value in row.setting.values()),
            f"{_plain(row.policy)} {STARVED}" if row.starved else _plain(row.policy),
            *(str(row.runs) for _ in repeated),
            *(_cell(row, names) for names in headers.values()),
        ]
        for row in comparison.rows
    ]
    return header, rows


def numbers_of(comparison: Comparison, columns: Columns) -> list[str]:
    """The numbers behind the columns of `text_rows` that are about a row's values; of several in one, the first."""
    return [names[0] for names in _headers(comparison, columns).values()]


def _cell(row: Row, names: Sequence[str]) -> str:
    if len(names) > 1:
        return "/".join(_mean(row, name) for name in names)
    value = row.values[names[0]]
    mean = _mean(row, names[0])
    return mean if value is None or value.ci95 is None else f"{mean} ±{value.ci95:.{_DECIMALS[names[0]]}f}"


def _mean(row: Row, name: str) -> str:
    value = row.values[name]
    return ABSENT if value is None else f"{value.mean:.{_DECIMALS[name]}f}"


def rich_table(comparison: Comparison, columns: Columns) -> Table:
    """The table for a terminal: a block per setting, its values told once."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = text_rows(comparison, columns)
    names = len(comparison.keys)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, title in enumerate(header):
        if index <= names:
            table.add_column(Text(title), overflow="fold")
        else:
            table.add_column(Text(title), justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        first = index == 0 or row[:names] != rows[index - 1][:names]
        last = index + 1 == len(rows) or row[:names] != rows[index + 1][:names]
        cells = [*(row[:names] if first else [""] * names), *row[names:]]
        table.add_row(*map(Text, cells), end_section=last)
    return table


def markdown(comparison: Comparison, columns: Columns) -> str:
    """The table in Markdown, with what identifies a row; notes and what else all rows share below."""
    keys = [*GROUPS, *(key for key in comparison.keys if key not in GROUPS)]
    headers = _headers(comparison, columns)
    header = [*keys, "policy", "runs", *headers, "starved"]
    rows = [
        [
            *(_plain(row.origin[key]) for key in keys),
            _plain(row.policy),
            str(row.runs),
            *(_cell(row, names) for names in headers.values()),
            _plain("; ".join(row.starved)) if row.starved else ABSENT,
        ]
        for row in comparison.rows
    ]
    rule = ["---"] * (len(keys) + 1) + ["---:"] * (len(headers) + 1) + ["---"]
    lines = [map(_literal, header), rule, *(map(_literal, row) for row in rows)]
    rest = {key: value for key, value in comparison.shared.items() if key not in keys}
    notes = [*comparison.notes, *([f"All rows: {_told(rest)}."] if rest else [])]
    below = [text for note in notes for text in ("", _literal(_plain(note)))]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *below]) + "\n"


def _literal(text: str) -> str:
    """Text that Markdown shows as it is. An underscore within a word means nothing there."""
    return re.sub(r"[\\`*\[\]<>|~$&#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def csv_text(comparison: Comparison) -> str:
    """Every number unrounded: a row per policy and setting, `_ci95` beside each mean, empty where unknown."""
    names = [metric.name for metric in (METRICS[0], *_RELATIVE[:2], *METRICS[1:], *_RELATIVE[2:])]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys, objectives = list(comparison.rows[0].origin), [f"slo_{key}" for key in comparison.rows[0].slo]
    numbers = (part for name in names for part in (name, f"{name}_ci95"))
    writer.writerow([*keys, *objectives, "policy", "runs", *numbers, "starved"])
    for row in comparison.rows:
        cells: list[Value] = [*row.origin.values(), *row.slo.values(), row.policy, row.runs]
        for name in names:
            value = row.values[name]
            cells += (None, None) if value is None else (value.mean, value.ci95)
        writer.writerow([*cells, "; ".join(row.starved)])
    return text.getvalue()

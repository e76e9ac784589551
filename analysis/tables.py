"""The comparison of policies against a baseline, as rows of numbers and as text."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Literal, NamedTuple

from analysis.runs import Run, RunSet, Value, replay_of
from voltana.errors import UserError
from voltana.record import RunRecord, holder

if TYPE_CHECKING:
    from rich.table import Table

Columns = Literal["short", "full"]

ABSENT = "-"


class Estimate(NamedTuple):
    """The mean over repetitions and the half width of its 95 % confidence interval (None for a single run)."""

    mean: float
    ci95: float | None


class Metric(NamedTuple):
    """A column: where it is in summary.json and how it is shown."""

    name: str
    path: tuple[str, ...]
    scale: float = 1.0
    decimals: int = 1


_ENERGY = ("energy_j", "total")

METRICS = (
    Metric("energy_kj", _ENERGY, 1e-3),
    Metric("ttft_attainment_pct", ("ttft_attainment",), 100),
    Metric("itl_attainment_pct", ("itl_attainment",), 100),
    Metric("joint_attainment_pct", ("joint_attainment",), 100),
    *(Metric(f"ttft_{q}_ms", ("ttft_ms", q), decimals=0) for q in ("p50", "p90", "p99")),
    *(Metric(f"itl_{q}_ms", ("itl_ms", q)) for q in ("p50", "p90", "p99")),
    Metric("energy_per_output_token_j", ("energy_per_output_token_j",), decimals=3),
    Metric("requests_completed", ("requests", "completed"), decimals=0),
    Metric("requests_failed", ("requests", "failed"), decimals=0),
)
SAVING = Metric("saving_pct", ())
OVER_ORACLE = Metric("energy_over_oracle", (), decimals=3)
OVER_BOUND = Metric("energy_over_bound", (), decimals=3)
_BOUND = "energy_bound_j"

_DECIMALS = {metric.name: metric.decimals for metric in (*METRICS, SAVING, OVER_ORACLE, OVER_BOUND)}

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
        "TTFT ms p50/p90/p99": ("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms"),
        "ITL ms p50/p90/p99": ("itl_p50_ms", "itl_p90_ms", "itl_p99_ms"),
        "done/failed": ("requests_completed", "requests_failed"),
    },
}
_DISTANCES = {"/oracle": (OVER_ORACLE.name,), "/bound": (OVER_BOUND.name,)}
"""Columns that are shown, beside the saving, only where there is something in them."""


@dataclass(frozen=True)
class Row:
    """A policy at a setting."""

    setting: dict[str, Value]
    policy: str
    runs: int
    values: dict[str, Estimate | None]


@dataclass(frozen=True)
class Comparison:
    """Every policy at every setting, the baseline first in each block."""

    keys: list[str]
    rows: list[Row]
    notes: list[str]


def columns_option(found: object) -> Columns:
    """The `columns` option."""
    if found == "short" or found == "full":
        return found
    raise UserError(f"columns: found {found}, allowed: {', '.join(_HEADERS)}")


def compare(runs: RunSet, baseline: str, oracle: str | None = None) -> Comparison:
    """Number the policies.

    Args:
        runs: what is compared.
        baseline: the policy whose energy the others save, at the same setting and seed.
        oracle: the policy whose energy theirs is divided by, at the same setting and seed; it need not be there.

    Raises:
        UserError: there is no run of the baseline at all.
    """
    policies = runs.policies()
    if baseline not in policies:
        raise UserError(f"baseline: found {baseline}, allowed: {', '.join(policies)}")
    policies.sort(key=lambda policy: policy != baseline)
    rows, without = [], []
    for setting in runs.settings():
        base = runs.at(setting, baseline)
        best = runs.at(setting, oracle) if oracle is not None else []
        if not base:
            without.append(_told(setting))
        present = [(policy, runs.at(setting, policy)) for policy in policies]
        rows += [_row(setting, policy, found, base, best) for policy, found in present if found]
    notes = [f"No run of {baseline} at {'; '.join(without)}: no saving there."] if without else []
    return Comparison(runs.keys, rows, notes + _notes(runs, rows))


def _row(setting: dict[str, Value], policy: str, runs: Sequence[Run], base: Sequence[Run], best: Sequence[Run]) -> Row:
    values = {
        metric.name: estimate(number * metric.scale for run in runs if (number := run.number(*metric.path)) is not None)
        for metric in METRICS
    }
    values[SAVING.name] = estimate(100 * (1 - ratio) for ratio in _energy_over(runs, base))
    values[OVER_ORACLE.name] = estimate(_energy_over(runs, best))
    values[OVER_BOUND.name] = estimate(_energy_over_bound(runs))
    return Row(setting, policy, len(runs), values)


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


def _energy_over_bound(runs: Sequence[Run]) -> list[float]:
    """Energy over the lower bound of the run itself, where it was worked out."""
    return [
        used / least
        for run in runs
        if _BOUND in run.record.summary and (used := run.number(*_ENERGY)) is not None and (least := run.number(_BOUND))
    ]


def estimate(samples: Iterable[float]) -> Estimate | None:
    """Mean and 95 % confidence interval by Student's t; None without samples."""
    numbers = list(samples)
    count = len(numbers)
    if not count:
        return None
    mean = math.fsum(numbers) / count
    if count == 1:
        return Estimate(mean, None)
    from scipy.special import stdtrit

    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Estimate(mean, float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count))


def _notes(runs: RunSet, rows: Sequence[Row]) -> list[str]:
    notes = []
    counts = sorted({row.runs for row in rows})
    if counts[-1] > 1:
        told = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        notes.append(f"Mean ± 95 % confidence interval over {told} runs; p50/p90/p99 and counts are means.")
    replays = dict.fromkeys(filter(None, (replay_of(run.record) for run in runs.runs)))
    if replays:
        notes.append(f"Traces at their own times: {'; '.join(replays)}.")
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


def _unfinished(record: RunRecord) -> str:
    who = holder(record.folder)
    return f"{record.folder} ({who} writes it)" if who else str(record.folder)


def caption(runs: RunSet) -> str:
    """What all runs have in common, on one line."""
    return _told(runs.shared)


def _told(setting: Mapping[str, Value]) -> str:
    return " ".join(f"{key}={_plain(value)}" for key, value in setting.items()) or "these runs"


def _plain(value: Value) -> str:
    return ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _headers(comparison: Comparison, columns: Columns) -> dict[str, tuple[str, ...]]:
    """Titles of the columns and the numbers in them."""
    known = {
        title: names
        for title, names in _DISTANCES.items()
        if any(row.values[name] is not None for row in comparison.rows for name in names)
    }
    titles = list(_HEADERS[columns].items())
    at = 1 + [title for title, _ in titles].index("saving %")
    return dict([*titles[:at], *known.items(), *titles[at:]])


def text_rows(comparison: Comparison, columns: Columns) -> tuple[list[str], list[list[str]]]:
    """The table as text: its header, its rows."""
    headers = _headers(comparison, columns)
    header = [*comparison.keys, "policy", *headers]
    rows = [
        [
            *(_plain(value) for value in row.setting.values()),
            row.policy,
            *(_cell(row, names) for names in headers.values()),
        ]
        for row in comparison.rows
    ]
    return header, rows


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
    from rich.markup import escape
    from rich.table import Table

    header, rows = text_rows(comparison, columns)
    names = len(comparison.keys)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, title in enumerate(header):
        if index <= names:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        first = index == 0 or row[:names] != rows[index - 1][:names]
        last = index + 1 == len(rows) or row[:names] != rows[index + 1][:names]
        cells = [*(row[:names] if first else [""] * names), *row[names:]]
        table.add_row(*map(escape, cells), end_section=last)
    return table


def markdown(comparison: Comparison, columns: Columns) -> str:
    """The table in Markdown, notes below."""
    header, rows = text_rows(comparison, columns)
    rule = ["---"] * (len(comparison.keys) + 1) + ["---:"] * (len(header) - len(comparison.keys) - 1)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *comparison.notes]).rstrip() + "\n"


def csv_text(comparison: Comparison) -> str:
    """Every number unrounded: a row per policy and setting, `_ci95` beside each mean, empty where unknown."""
    names = [metric.name for metric in (METRICS[0], SAVING, *METRICS[1:], OVER_ORACLE, OVER_BOUND)]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*comparison.keys, "policy", "runs", *(part for name in names for part in (name, f"{name}_ci95"))])
    for row in comparison.rows:
        cells: list[Value] = [*row.setting.values(), row.policy, row.runs]
        for name in names:
            cells += row.values[name] or (None, None)
        writer.writerow(cells)
    return text.getvalue()

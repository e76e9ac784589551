"""Figures of run records.

`curves` is the three-row figure in which policies are published: TTFT attainment, ITL attainment and energy against
request rate. `timeline` is what every instance of one run did: clock, batch size and power over time.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis import style
from analysis.runs import Run, RunSet
from analysis.tables import Estimate, estimate
from voltana.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.timeline import Series

_FORMATS = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_MOST_PANELS = 6
_FEW_CLOCKS = 2


class _Row(NamedTuple):
    """A row of `curves`: its label, the number of summary.json, the column of a published CSV."""

    label: str
    path: tuple[str, ...]
    scale: float
    published: str


_ROWS = (
    _Row("TTFT attainment (%)", ("ttft_attainment",), 100, "ttft_attainment_pct"),
    _Row("ITL attainment (%)", ("itl_attainment",), 100, "itl_attainment_pct"),
    _Row("Energy (kJ)", ("energy_j", "total"), 1e-3, "energy_kJ"),
)


class PublishedPoint(NamedTuple):
    """A row of a published CSV."""

    model: str
    trace: str
    rps: float
    series: str
    values: tuple[float, ...]


def output_path(out: str) -> Path:
    """The file to write; its ending chooses the format."""
    path = Path(out)
    if path.suffix not in _FORMATS:
        raise UserError(f"out: found {out}, allowed: a path that ends in {', '.join(_FORMATS)}")
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with style.figure_style():
            figure.savefig(path, metadata=_FORMATS[path.suffix])
    except OSError as error:
        raise UserError(f"out: {path}: {error.strerror}") from error


def curves(runs: RunSet, published: str | None = None) -> Figure:
    """Attainments and energy against request rate: a column per model and trace, a line per policy.

    Repetitions give the mean and, as a band, its 95 % confidence interval.

    Args:
        runs: at least one request rate each.
        published: a CSV with columns model, dataset, rps, series, ttft_attainment_pct, itl_attainment_pct, energy_kJ.
    """
    from matplotlib.figure import Figure

    panels = _panels(runs)
    points = _read_published(published, list(panels)) if published is not None else []
    looks = style.lines(sorted({_line_name(run) for run in runs.runs}, key=_usual_order))
    with style.figure_style():
        figure = Figure(figsize=(max(6.4, 1.0 + 2.7 * len(panels)), 6.4), layout="constrained")
        grid = figure.subplots(3, len(panels), sharex="col", squeeze=False)
        for column, (panel, members) in enumerate(panels.items()):
            axes = list(grid[:, column])
            for name, look in looks.items():
                _draw_line(axes, name, look, [run for run in members if _line_name(run) == name])
            _draw_published(axes, looks, [point for point in points if _same_panel(point, panel)])
            axes[0].set_title("\n".join(panel) if len(panels) > 1 else ", ".join(panel))
            axes[-1].set_xlabel("Request rate (1/s)")
        for index, row in enumerate(_ROWS):
            _finish_row(list(grid[index]), row)
        _legend(figure, list(grid[0]), bool(points))
    return figure


def _panels(runs: RunSet) -> dict[tuple[str, str], list[Run]]:
    panels: dict[tuple[str, str], list[Run]] = {}
    for run in runs.runs:
        _rate(run)
        panels.setdefault((run.name("model"), run.name("trace")), []).append(run)
    if len(panels) > _MOST_PANELS:
        raise UserError(f"runs: found {len(panels)} pairs of model and trace, allowed: up to {_MOST_PANELS}")
    return dict(sorted(panels.items()))


def _rate(run: Run) -> float:
    rate = run.record.config.get("rps")
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise UserError(f"{run.record.folder}: rps: found {rate!r}, allowed: a request rate (curves are drawn over it)")
    return float(rate)


def _line_name(run: Run) -> str:
    """The policy, and what else differs besides the axes of the figure."""
    rest = [f"{key}={value}" for key, value in run.setting.items() if key not in ("model", "trace", "rps")]
    return " ".join([run.policy, *rest])


def _usual_order(name: str) -> tuple[int, str]:
    known = list(style.POLICIES)
    return (known.index(name) if name in known else len(known), name)


def _draw_line(axes: Sequence[Axes], name: str, look: style.Line, runs: Sequence[Run]) -> None:
    rates = sorted({_rate(run) for run in runs})
    for axis, row in zip(axes, _ROWS, strict=True):
        found = {rate: _at(runs, rate, row) for rate in rates}
        points = [(rate, value) for rate, value in found.items() if value is not None]
        means = [value.mean for _, value in points]
        width = [value.ci95 or 0.0 for _, value in points]
        x = [rate for rate, _ in points]
        axis.plot(x, means, color=look.colour, marker=look.marker, label=name, clip_on=False, zorder=3)
        if any(width) and len(x) == 1:
            axis.errorbar(x, means, width, color=look.colour, fmt="none", elinewidth=1, capsize=2, zorder=2)
        elif any(width):
            low = [mean - half for mean, half in zip(means, width, strict=True)]
            high = [mean + half for mean, half in zip(means, width, strict=True)]
            axis.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=1)


def _at(runs: Sequence[Run], rate: float, row: _Row) -> Estimate | None:
    numbers = [run.number(*row.path) for run in runs if _rate(run) == rate]
    return estimate(number * row.scale for number in numbers if number is not None)


def _draw_published(axes: Sequence[Axes], looks: Mapping[str, style.Line], points: Sequence[PublishedPoint]) -> None:
    for series in dict.fromkeys(point.series for point in points):
        policy = style.PUBLISHED.get(series, series)
        colour = looks[policy].colour if policy in looks else style.lines([policy])[policy].colour
        label = f"_{series}" if policy in looks else f"{policy}, published"
        chosen = sorted((point for point in points if point.series == series), key=lambda point: point.rps)
        for index, axis in enumerate(axes):
            x, y = [point.rps for point in chosen], [point.values[index] for point in chosen]
            axis.plot(x, y, color=colour, linestyle=(0, (4, 2)), linewidth=1.3, alpha=0.85, label=label)


def _finish_row(axes: Sequence[Axes], row: _Row) -> None:
    axes[0].set_ylabel(row.label)
    for axis in axes:
        axis.margins(x=0.03)
        axis.set_ylim(bottom=0)
        if row.scale == 100:
            axis.set_ylim(0, 100)
            axis.set_yticks(range(0, 101, 25))
            axis.tick_params(labelleft=axis is axes[0])


def _legend(figure: Figure, axes: Sequence[Axes], published: bool) -> None:
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axis in axes:
        entries |= {str(label): handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if published:
        entries["published"] = Line2D([], [], color="#7F7F7F", linestyle=(0, (4, 2)), linewidth=1.3)
    labels = list(entries)
    room = int(figure.get_figwidth() * 11)
    columns = max(1, min(len(labels), room // (max(map(len, labels)) + 6)))
    figure.legend(list(entries.values()), labels, loc="outside upper center", ncols=columns)


def _read_published(path: str, panels: Sequence[tuple[str, str]]) -> list[PublishedPoint]:
    try:
        with Path(path).open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"published: {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    points = [_published_point(path, line, row) for line, row in enumerate(rows, start=2)]
    if not any(_same_panel(point, panel) for point in points for panel in panels):
        found = ", ".join(dict.fromkeys(f"{point.model} {point.trace}" for point in points)) or "no rows"
        allowed = ", ".join(" ".join(panel) for panel in panels)
        raise UserError(f"published: {path}: found {found}, allowed: the model and trace of a run ({allowed})")
    return points


def _published_point(path: str, line: int, row: Mapping[str, str | None]) -> PublishedPoint:
    needed = ("model", "dataset", "rps", "series", *(column.published for column in _ROWS))
    missing = [name for name in needed if row.get(name) is None]
    if missing:
        raise UserError(f"published: {path}:{line}: missing {', '.join(missing)}; allowed columns: {', '.join(needed)}")
    try:
        numbers = [float(str(row[name])) for name in ("rps", *needed[4:])]
    except ValueError as error:
        raise UserError(f"published: {path}:{line}: {error}") from error
    return PublishedPoint(str(row["model"]), str(row["dataset"]), numbers[0], str(row["series"]), tuple(numbers[1:]))


def _same_panel(point: PublishedPoint, panel: tuple[str, str]) -> bool:
    return (_bare(point.model), _bare(point.trace)) == (_bare(panel[0]), _bare(panel[1]))


def _bare(name: str) -> str:
    """`Llama-3.1-8B` and `llama31_8b` are the same model."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def timeline(runs: RunSet, window: Any = None) -> Figure:
    """What every instance of one run did: a row per instance; clock, batch size and power over time.

    Where steps are too dense to read, their means over each hundredth of the time shown are drawn over them.

    Args:
        runs: exactly one run.
        window: seconds to show, `[from, to]`; the whole run by default.
    """
    from matplotlib.figure import Figure

    from analysis.timeline import read_timeline

    if len(runs.runs) != 1:
        raise UserError(f"runs: found {len(runs.runs)} runs, allowed: the folder of one run (figure=timeline)")
    run = runs.runs[0]
    instances = read_timeline(run, window)
    with style.figure_style():
        height = 1.0 + max(0.9, 1.5 - 0.1 * len(instances)) * len(instances)
        figure = Figure(figsize=(10.5, height), layout="constrained")
        grid = figure.subplots(len(instances), 3, sharex=True, squeeze=False)
        for index, (instance, series) in enumerate(instances.items()):
            for axis, quantity in zip(grid[index], series, strict=True):
                _draw_steps(axis, quantity)
            grid[index, 0].set_ylabel(instance, rotation=0, ha="right", va="center", labelpad=8)
        _share_scales(grid, list(instances.values()))
        for axis, title in zip(grid[0], ("SM clock (MHz)", "Batch size (requests)", "Power (W)"), strict=True):
            axis.set_title(title)
        for axis in grid[-1]:
            axis.set_xlabel("Time (s)")
        figure.suptitle(_run_title(run), fontsize=10.5)
    return figure


def _run_title(run: Run) -> str:
    rate = run.record.config.get("rps")
    return ", ".join([run.policy, run.name("model"), run.name("trace"), *([f"{rate:g} requests/s"] if rate else [])])


def _draw_steps(axis: Axes, series: Series) -> None:
    colour = style.PHASES.get(series.phase, style.INK)
    dense = series.smooth is not None
    axis.step(
        series.time_s,
        series.value,
        where="post",
        color=colour,
        linewidth=0.5 if dense else 1.1,
        alpha=0.25 if dense else 1.0,
        rasterized=dense,
        label=series.name,
    )
    if series.smooth is not None:
        axis.plot(*series.smooth, color=colour, linewidth=1.3, label=f"{series.name}_mean")


def _share_scales(grid: Any, instances: Sequence[Sequence[Series]]) -> None:
    """One scale per quantity; one per phase for the batch size, where prefill and decode differ by far."""
    drawn = [
        (axis, series)
        for axes, row in zip(grid, instances, strict=True)
        for axis, series in zip(axes, row, strict=True)
    ]
    start = min(series.time_s[0] for _, series in drawn)
    for axis, series in drawn:
        alike = [other for _, other in drawn if other.name == series.name]
        if series.name == "batch_size":
            alike = [other for other in alike if other.phase == series.phase]
        low, high = min(other.value.min() for other in alike), max(other.value.max() for other in alike)
        margin = max(0.08 * (high - low), 0.02 * high, 0.1)
        axis.set_ylim(low - margin if series.name == "clock_mhz" else 0, high + margin)
        axis.set_xlim(start, series.time_s[-1])
        clocks = sorted({float(value) for other in alike for value in other.value})
        if series.name == "clock_mhz" and len(clocks) <= _FEW_CLOCKS:
            axis.set_yticks(clocks)

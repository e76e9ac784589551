"""Figures of run records.

`curves` is the three-row figure in which policies are published: TTFT attainment, ITL attainment and energy against
request rate, or against whatever else was swept. `tradeoff` sets energy against attainment, a point per policy.
`timeline` is what every instance of one run did: clock, batch size and power over time.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.analysis import style
from voltana.analysis.labels import Point, label_piles
from voltana.analysis.runs import RATE, Run, RunSet
from voltana.analysis.tables import LEAST_FOR_INTERVAL, Estimate, Row, compare, estimate, few_requests, unclocked_note
from voltana.errors import UserError, one_line
from voltana.files import write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from voltana.analysis.timeline import Series

_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {},
    ".pdf": {"metadata": {"CreationDate": None}},
    ".svg": {"metadata": {"Date": None}},
    ".pgf": {},
}
"""How each is saved, so that the same figure gives the same bytes."""
_MOST_PANELS = 6
_FEW_CLOCKS = 2
_LEAST_SPAN = 10.0
"""Points of attainment or % of energy: what the axes of `tradeoff` span at least, so that a small step looks small."""
_LONGEST_LABEL = 60
_MOST_BARS = 60
_MOST_NAMED = 8
"""Parts of a stacked bar that a legend names."""
_LABELS = {
    RATE: "Request rate (1/s)",
    "slo.scale": "Objectives, relative to the paper's",
    "cluster.name": "Prefill and decode instances",
    "arrival.burstiness": "Burstiness of arrivals",
    "actuation.block_s": "Time a clock call blocks (s)",
    "drift.name": "GPUs in the middle of the run",
    "serving.length_error": "Error of guessed lengths (relative)",
}


class _Row(NamedTuple):
    """A row of `curves`: its label, the number of summary.json, the column of a published CSV."""

    label: str
    path: tuple[str, ...]
    scale: float
    published: str


ROWS = (
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
    """As the rows of `curves`: attainments of TTFT and ITL in %, energy in kJ."""


def output_path(out: str, key: str = "out") -> Path:
    """The file to write; its ending chooses the format."""
    path = Path(out)
    if path.suffix not in _FORMATS:
        raise UserError(f"{key}: found {out}, allowed: a path that ends in {', '.join(_FORMATS)}")
    return path


def save(figure: Figure, path: Path, key: str = "out") -> None:
    """Write a figure; the same figure gives the same bytes.

    Raises:
        UserError: it cannot be written; names the key.
    """
    drawn = _written(figure, path, key)
    try:
        write_whole(path, drawn)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _written(figure: Figure, path: Path, key: str) -> bytes:
    drawn = io.BytesIO()
    try:
        with style.figure_style():
            figure.savefig(drawn, format=path.suffix[1:], **_FORMATS[path.suffix])
    except (FileNotFoundError, RuntimeError) as error:
        if path.suffix != ".pgf":
            raise
        needed = f"{path}: needs LaTeX with pgf ({style.TEX}), which measures its letters"
        raise UserError(f"{key}: {needed}: {one_line(str(error))}") from error
    return drawn.getvalue()


def curves(runs: RunSet, published: str | None = None, x: str = RATE) -> Figure:
    """Attainments and energy against request rate: a column per model and trace, a line per policy.

    Three repetitions and more give the mean and, as a band, its 95 % confidence interval; two give the mean and a
    whisker from one to the other.

    Args:
        runs: all with a value for `x`.
        published: a CSV, or a folder of such, with columns model, dataset, rps, series, ttft_attainment_pct,
            itl_attainment_pct, energy_kJ.
        x: the configuration key on the axis. If it is not the request rate, every rate has a column of its own; words
            are set side by side.
    """
    axis_of = Axis(x, runs)
    panels = panels_of(runs, axis_of)
    points = _read_published(published, list(panels)) if published is not None else []
    names = sorted({line_name(run, axis_of) for run in runs.runs}, key=usual_order)
    entries: dict[str, Artist] = {}
    with style.figure_style():
        figure = style.new_figure(max(6.4, 1.0 + 2.7 * len(panels)), 6.4)
        grid = figure.subplots(3, len(panels), sharex="col", squeeze=False)
        for column, (panel, members) in enumerate(panels.items()):
            axes = list(grid[:, column])
            for name in names:
                own = [run for run in members if line_name(run, axis_of) == name]
                entries.setdefault(name, _draw_line(axes, name, own, axis_of))
            entries |= _draw_published(axes, names, [point for point in points if _same_panel(point, panel)])
            axes[0].set_title("\n".join(panel) if len(panels) > 1 else ", ".join(panel))
            axes[-1].set_xlabel(axis_of.label)
            if axis_of.words:
                axes[-1].set_xticks(range(len(axis_of.words)), axis_of.words)
        for index, row in enumerate(ROWS):
            _finish_row(list(grid[index]), row)
        legend(figure, entries, bool(points))
        repeated = {len(group) for group in _repetitions(runs.runs, axis_of)}
        _footnote(figure, _spread_notes(repeated, "Bands") + _starved_notes(runs.runs) + unclocked_note(runs.runs))
    return figure


class Axis:
    """The configuration key along the horizontal axis of `curves`."""

    def __init__(self, key: str, runs: RunSet) -> None:
        flats = [run.flat for run in runs.runs]
        if not any(key in flat for flat in flats) and any(f"{key}.name" in flat for flat in flats):
            key = f"{key}.name"
        self.key = key
        self.label = _LABELS.get(key, key)
        lacking = [run.record.folder for run, flat in zip(runs.runs, flats, strict=True) if key not in flat]
        if lacking:
            raise UserError(f"x: found {key}, which {_who_lacks(lacking, runs, key, flats)}")
        found = [flat[key] for flat in flats]
        self.words: list[str] = []
        """The values, if they are not all numbers."""
        if key != RATE and not all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
            self.words = list(dict.fromkeys(str(v) for v in found))

    def at(self, run: Run) -> float:
        """Where a run stands on it: the value of the key, or the place of its word among `words`."""
        value = run.flat.get(self.key)
        if self.words:
            return float(self.words.index(str(value)))
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "a request rate" if self.key == RATE else "a value"
            raise UserError(
                f"{run.record.folder}: {self.key}: found {value!r}, allowed: {what} (curves are drawn over it)"
            )
        return float(value)

    def panel(self, run: Run) -> tuple[str, ...]:
        """The column a run belongs to."""
        rate = run.flat.get(RATE)
        others = () if self.key == RATE or not isinstance(rate, int | float) else (f"{rate:g} requests/s",)
        return run.name("model"), run.name("trace"), *others


def _who_lacks(lacking: Sequence[Path], runs: RunSet, key: str, flats: Sequence[Mapping[str, Any]]) -> str:
    if len(lacking) < len(runs.runs):
        return f"{lacking[0]} lacks, allowed: a configuration key of all runs"
    keys = sorted({name for flat in flats for name in flat})
    close = difflib.get_close_matches(key, keys, n=1)
    varying = ", ".join(runs.keys) or "none"
    return (
        f"no run has, allowed: a configuration key; those that vary here: {varying}"
        f"{f'; did you mean {close[0]}?' if close else ''}"
    )


def panels_of(runs: RunSet, axis_of: Axis, most: int = _MOST_PANELS) -> dict[tuple[str, ...], list[Run]]:
    """The runs of every column, in order.

    Raises:
        UserError: there are more than `most`, or a run has no place on the axis.
    """
    panels: dict[tuple[str, ...], list[Run]] = {}
    for run in runs.runs:
        axis_of.at(run)
        panels.setdefault(axis_of.panel(run), []).append(run)
    if len(panels) > most:
        what = "pairs of model and trace" if axis_of.key == RATE else "combinations of model, trace and request rate"
        raise UserError(f"runs: found {len(panels)} {what}, allowed: up to {most}")
    return dict(sorted(panels.items()))


def line_name(run: Run, axis_of: Axis) -> str:
    """The policy, and what else differs besides the axes of the figure."""
    own = {"model", "trace", RATE, axis_of.key.removesuffix(".name")}
    rest = [f"{key}={value}" for key, value in run.setting.items() if key not in own]
    return " ".join([run.policy, *rest])


def usual_order(name: str) -> tuple[int, str]:
    """Sorts policies as a legend has them."""
    known = list(style.POLICIES)
    return (known.index(name) if name in known else len(known), name)


def _draw_line(axes: Sequence[Axes], name: str, runs: Sequence[Run], axis_of: Axis) -> Artist:
    look = style.line(name)
    places = sorted({axis_of.at(run) for run in runs})
    starved = {axis_of.at(run) for run in runs if run.starved}
    drawn: list[Artist] = []
    for axis, row in zip(axes, ROWS, strict=True):
        found = {place: mean_of([run for run in runs if axis_of.at(run) == place], row) for place in places}
        points = {place: value for place, value in found.items() if value is not None}
        means = [value.mean for value in points.values()]
        drawn += axis.plot(
            list(points), means, color=look.colour, marker=look.marker, label=name, clip_on=False, zorder=3
        )
        hollow = {place: value.mean for place, value in points.items() if place in starved}
        if hollow:
            axis.plot(list(hollow), list(hollow.values()), linestyle="none", **_hollow(look), clip_on=False, zorder=4)
        _draw_spread(axis, points, look)
    return drawn[0]


def _draw_spread(axis: Axes, points: Mapping[float, Estimate], look: style.Line) -> None:
    """A band where every point has an interval; whiskers where some have, or where a point is the mean of two."""
    told = {place: value for place, value in points.items() if value.n > 1}
    if len(told) == len(points) > 1 and all(value.ci95 is not None for value in points.values()):
        low, high = zip(*(reach(value) for value in points.values()), strict=True)
        axis.fill_between(list(points), low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=1)
        return
    for place, value in told.items():
        caps = 2 if value.n >= LEAST_FOR_INTERVAL else 0
        axis.errorbar(
            place, value.mean, _whisker(value), color=look.colour, fmt="none", elinewidth=1, capsize=caps, zorder=2
        )


def reach(value: Estimate) -> tuple[float, float]:
    """Where the interval of a mean begins and ends; of fewer than three, the least and the greatest."""
    if value.ci95 is None:
        return value.least, value.most
    return value.mean - value.ci95, value.mean + value.ci95


def _whisker(value: Estimate) -> tuple[tuple[float], tuple[float]] | None:
    if value.n == 1:
        return None
    low, high = reach(value)
    return (value.mean - low,), (high - value.mean,)


def _hollow(look: style.Line) -> dict[str, Any]:
    return {"marker": look.marker, "markerfacecolor": "white", "markeredgecolor": look.colour}


def _repetitions(runs: Sequence[Run], axis_of: Axis) -> list[list[Run]]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((line_name(run, axis_of), axis_of.panel(run), axis_of.at(run)), []).append(run)
    return list(groups.values())


def _spread_notes(repeated: set[int], interval: str) -> list[str]:
    """What is drawn beside a mean of so many runs."""
    enough = sorted(number for number in repeated if number >= LEAST_FOR_INTERVAL)
    notes = []
    if enough:
        seeds = f"{enough[0]}" if len(enough) == 1 else f"{enough[0]} to {enough[-1]}"
        notes.append(f"{interval}: 95 % confidence interval of the mean over {seeds} seeds.")
    if 2 in repeated:
        notes.append("2 seeds: a whisker from one value to the other; two make no interval.")
    return notes


def _starved_notes(runs: Sequence[Run]) -> list[str]:
    return ["Hollow: starved, the numbers are the machine's, not the policy's."] if any(r.starved for r in runs) else []


def mean_of(runs: Sequence[Run], row: _Row) -> Estimate | None:
    """A row of `curves` over repetitions."""
    numbers = [run.number(*row.path) for run in runs]
    return estimate(number * row.scale for number in numbers if number is not None)


def _draw_published(axes: Sequence[Axes], names: Sequence[str], points: Sequence[PublishedPoint]) -> dict[str, Artist]:
    """Draw the points; what the legend has to tell of them."""
    entries: dict[str, Artist] = {}
    for series in dict.fromkeys(point.series for point in points):
        policy = style.PUBLISHED.get(series, series)
        label = f"{policy}, published"
        chosen = sorted((point for point in points if point.series == series), key=lambda point: point.rps)
        for index, axis in enumerate(axes):
            x, y = [point.rps for point in chosen], [point.values[index] for point in chosen]
            dashes: Any = {"linestyle": (0, (4, 2)), "linewidth": 1.3, "alpha": 0.85}
            (drawn,) = axis.plot(x, y, color=style.line(policy).colour, label=label, **dashes)
            if policy not in names:
                entries[label] = drawn
    return entries


def _finish_row(axes: Sequence[Axes], row: _Row) -> None:
    axes[0].set_ylabel(row.label)
    for axis in axes:
        axis.margins(x=0.03)
        axis.set_ylim(bottom=0)
        if row.scale == 100:
            axis.set_ylim(0, 100)
            axis.set_yticks(range(0, 101, 25))
            axis.tick_params(labelleft=axis is axes[0])


def legend(figure: Figure, entries: Mapping[str, Artist], published: bool = False) -> None:
    """The names of the lines above all axes."""
    from matplotlib.lines import Line2D

    shown = {textwrap.fill(" ".join(label.split()), _LONGEST_LABEL): artist for label, artist in entries.items()}
    if published:
        shown["published"] = Line2D([], [], color="#7F7F7F", linestyle=(0, (4, 2)), linewidth=1.3)
    room = int(figure.get_figwidth() * 11)
    widest = max(len(line) for label in shown for line in label.splitlines())
    columns = max(1, min(len(shown), room // (widest + 6)))
    places = [str(number) for number in range(len(shown))]
    drawn = figure.legend(list(shown.values()), places, loc="outside upper center", ncols=columns)
    for text, label in zip(drawn.get_texts(), shown, strict=True):
        text.set_text(label)  # handed to the legend itself, one with a leading underscore would be left out


def _footnote(figure: Figure, notes: Sequence[str]) -> None:
    """Small lines at the bottom, below all axes."""
    if not notes:
        return
    lines = [line for note in notes for line in textwrap.wrap(note, int(figure.get_figwidth() * 15))]
    height = (0.14 * len(lines) + 0.06) / figure.get_figheight()
    figure.text(0.01, height / 2, "\n".join(lines), fontsize=7.5, color="#595959", va="center", in_layout=False)
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.set(rect=(0, height, 1, 1 - height))  # type: ignore[call-arg]


def _read_published(path: str, panels: Sequence[tuple[str, ...]]) -> list[PublishedPoint]:
    files = sorted(Path(path).glob("*.csv")) if Path(path).is_dir() else [Path(path)]
    points = [point for file in files for point in _published_file(file)]
    if not any(_same_panel(point, panel) for point in points for panel in panels):
        found = ", ".join(dict.fromkeys(f"{point.model} {point.trace}" for point in points)) or "no rows"
        allowed = ", ".join(" ".join(panel) for panel in panels)
        raise UserError(f"published: {path}: found {found}, allowed: the model and trace of a run ({allowed})")
    return points


def _published_file(path: Path) -> list[PublishedPoint]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"published: {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    return [_published_point(path, line, row) for line, row in enumerate(rows, start=2)]


def _published_point(path: Path, line: int, row: Mapping[str, str | None]) -> PublishedPoint:
    needed = ("model", "dataset", "rps", "series", *(column.published for column in ROWS))
    missing = [name for name in needed if row.get(name) is None]
    if missing:
        raise UserError(f"published: {path}:{line}: missing {', '.join(missing)}; allowed columns: {', '.join(needed)}")
    try:
        numbers = [float(str(row[name])) for name in ("rps", *needed[4:])]
    except ValueError as error:
        raise UserError(f"published: {path}:{line}: {error}") from error
    return PublishedPoint(str(row["model"]), str(row["dataset"]), numbers[0], str(row["series"]), tuple(numbers[1:]))


def _same_panel(point: PublishedPoint, panel: tuple[str, ...]) -> bool:
    return (_bare(point.model), _bare(point.trace)) == tuple(map(_bare, panel[:2]))


def _bare(name: str) -> str:
    """`Llama-3.1-8B` and `llama31_8b` are the same model."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def tradeoff(runs: RunSet, baseline: str, *, front: bool = False) -> Figure:
    """Energy saved against requests that meet both objectives: a column per model, trace and rate, a point per policy.

    Up and to the right is better. Three repetitions and more give the mean and its 95 % confidence interval, two the
    mean and a whisker from one to the other. Neither axis spans less than ten points, and markers that cover each other
    are named.

    Args:
        runs: at least one of the baseline in every column.
        baseline: the policy whose energy the others save.
        front: whether a line joins the policies that no other beats in both.
    """
    panels = panels_of(runs, Axis("policy.name", runs))
    for panel, members in panels.items():
        if baseline in runs.policies() and all(run.policy != baseline for run in members):
            raise UserError(f"baseline: found no run of {baseline} at {', '.join(panel)}, allowed: one in every column")
    rows = {panel: compare(replace(runs, runs=members), baseline).rows for panel, members in panels.items()}
    if not any(row.values["saving_pct"] for each in rows.values() for row in each):
        raise UserError(
            f"runs: found none whose energy and that of {baseline} are known, allowed: runs with metered GPUs"
        )
    with style.figure_style():
        figure = style.new_figure(max(6.4, 1.0 + 3.3 * len(panels)), 5.2)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        drawn = [_draw_points(axis, rows[panel]) for axis, panel in zip(grid, panels, strict=True)]
        for axis, points in zip(grid, drawn, strict=True):
            if front:
                best = sorted(pareto([point.at for point in points]))
                axis.plot(*zip(*best, strict=True), color="#7F7F7F", linewidth=1, zorder=1)
        for axis, panel in zip(grid, panels, strict=True):
            axis.set_title("\n".join(panel))
            axis.set_xlabel(textwrap.fill(f"Energy saved against {baseline} (%)", 40))
        grid[0].set_ylabel("Requests that meet both objectives (%)")
        names = sorted({point.name for each in drawn for point in each}, key=usual_order)
        legend(figure, {name: _marker(style.line(name)) for name in names})
        repeated = {row.runs for each in rows.values() for row in each}
        few = few_requests([row for each in rows.values() for row in each], baseline)
        notes = _spread_notes(repeated, "Bars") + _starved_notes(runs.runs) + unclocked_note(runs.runs) + few
        _footnote(figure, notes)
        for axis, each in zip(grid, drawn, strict=True):
            label_piles(axis, each)
    return figure


def _draw_points(axis: Axes, rows: Sequence[Row]) -> list[Point]:
    points = []
    for row in rows:
        saved, met = row.values["saving_pct"], row.values["joint_attainment_pct"]
        if saved is None or met is None:
            continue
        look = style.line(row.policy)
        bars: dict[str, Any] = {"xerr": _whisker(saved), "yerr": _whisker(met), "elinewidth": 1, "markersize": 7}
        kind = _hollow(look) if row.starved else {"marker": look.marker}
        axis.errorbar(saved.mean, met.mean, color=look.colour, linestyle="none", label=row.policy, **bars, **kind)
        points.append(Point(row.policy, look.colour, (saved.mean, met.mean), reach(saved), reach(met)))
    if points:
        axis.set_xlim(_span([end for point in points for end in point.x_reach]))
        axis.set_ylim(_span([end for point in points for end in point.y_reach], share=True))
    return points


def pareto(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other reaches or passes in both coordinates, larger being better."""
    return [one for one in places if not any(o[0] >= one[0] and o[1] >= one[1] and o != one for o in places)]


def energy(runs: RunSet) -> Figure:
    """Where the joules went: a bar per policy and setting, stacked by purpose (`voltana.analysis.energy`).

    Repetitions are averaged.

    Raises:
        UserError: no run tells the constants of its GPU, or none was metered.
    """
    from voltana.analysis.energy import PARTS, split

    bars: dict[str, list[float]] = {}
    for name, members in _bars_of(runs).items():
        found = [parts for run in members if (parts := split(run.record)) is not None]
        if found:
            sums = [[sum(each.parts[i] for each in parts.values()) / 1e3 for i in range(len(PARTS))] for parts in found]
            bars[name] = [math.fsum(column) / len(sums) for column in zip(*sums, strict=True)]
    if not bars:
        raise UserError(
            "runs: found none whose energy can be told apart, allowed: metered runs that name a GPU's constants"
        )
    return _stacked(bars, dict(zip(PARTS, style.PARTS, strict=True)), "Energy (kJ)")


def residency(runs: RunSet) -> Figure:
    """How long each clock was in force: a bar per policy, setting and phase, stacked from the lowest clock up."""
    from voltana.analysis.page.details import residency as shares_of

    bars: dict[str, dict[float, float]] = {}
    for name, members in _bars_of(runs).items():
        for run in members:
            shares = shares_of(run.record.instances(), run.number("end_s", may_lack=True))
            for phase, found in shares.items():
                own = bars.setdefault(f"{name}, {phase}", {})
                for clock, share in found:
                    own[clock] = own.get(clock, 0.0) + 100 * share / len(members)
    clocks = sorted({clock for own in bars.values() for clock in own})
    if not clocks:
        raise UserError("runs: found none that tells its clocks, allowed: runs whose clocks were read")
    colours = style.scale(len(clocks))
    stacked = {name: [own.get(clock, 0.0) for clock in clocks] for name, own in bars.items()}
    return _stacked(
        stacked, {f"{clock:g} MHz": colour for clock, colour in zip(clocks, colours, strict=True)}, "Time (%)"
    )


def _bars_of(runs: RunSet) -> dict[str, list[Run]]:
    """The repetitions behind each bar, by policy and setting in words."""
    bars: dict[str, list[Run]] = {}
    for setting in runs.settings():
        for policy in runs.policies():
            told = ", ".join([policy, *(f"{key} {value}" for key, value in setting.items())])
            if found := runs.at(setting, policy):
                bars[told] = found
    if len(bars) > _MOST_BARS:
        raise UserError(f"runs: found {len(bars)} policies at settings, allowed: up to {_MOST_BARS}")
    return bars


def _stacked(bars: Mapping[str, Sequence[float]], parts: Mapping[str, str], label: str) -> Figure:
    """Horizontal bars from the top, each of the same parts in the same order; `parts` has their colours."""
    with style.figure_style():
        figure = style.new_figure(7.0, 1.2 + 0.26 * len(bars))
        axis = figure.subplots()
        places = list(range(len(bars), 0, -1))
        begins = [0.0] * len(bars)
        for index, (part, colour) in enumerate(parts.items()):
            lengths = [values[index] for values in bars.values()]
            axis.barh(places, lengths, left=begins, height=0.72, color=colour, label=part)
            begins = [begin + length for begin, length in zip(begins, lengths, strict=True)]
        axis.set_yticks(places, list(bars))
        axis.set_xlabel(label)
        axis.grid(visible=False, axis="y")
        axis.set_axisbelow(True)
        axis.set_xlim(0, max(begins) or 1)
        if len(parts) <= _MOST_NAMED:
            figure.legend(loc="outside upper center", ncols=4 if figure.get_figwidth() > 5 else 2)
        else:
            low, *_, high = parts
            _footnote(figure, [f"From {low} (light) to {high} (dark)."])
    return figure


def _marker(look: style.Line) -> Artist:
    from matplotlib.lines import Line2D

    kind: Any = {"marker": look.marker}
    return Line2D([], [], color=look.colour, linestyle="none", markersize=7, **kind)


def _span(values: Sequence[float], share: bool = False) -> tuple[float, float]:
    """Limits of an axis around these values, `_LEAST_SPAN` apart or more; those of shares end at 0 and 100."""
    low, high = min(values), max(values)
    margin = 0.06 * max(high - low, _LEAST_SPAN)
    widen = max(margin, (_LEAST_SPAN - (high - low)) / 2)
    low, high = low - widen, high + widen
    if share and high > 100:
        high = 100 + margin / 3
        low = min(low, high - _LEAST_SPAN)
    if share and low < 0:
        low = -margin / 3
        high = max(high, low + _LEAST_SPAN)
    return low, high


def timeline(runs: RunSet, window: Any = None) -> Figure:
    """What every instance of one run did: a row per instance; clock, batch size and power over time.

    Where steps are too dense to read, their means over each hundredth of the time shown are drawn over them.

    Args:
        runs: exactly one run.
        window: seconds to show, `[from, to]`; the whole run by default.
    """
    from voltana.analysis.timeline import read_timeline

    if len(runs.runs) != 1:
        raise UserError(f"runs: found {len(runs.runs)} runs, allowed: the folder of one run (figure=timeline)")
    run = runs.runs[0]
    instances = read_timeline(run, window)
    with style.figure_style():
        height = 1.0 + max(0.9, 1.5 - 0.1 * len(instances)) * len(instances)
        figure = style.new_figure(10.5, height)
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
    rate = run.flat.get(RATE)
    parts = [run.policy, run.name("model"), run.name("trace"), *([f"{rate:g} requests/s"] if rate else [])]
    return ", ".join(
        [*parts, *(["unfinished"] if run.record.unfinished else []), *(["starved"] if run.starved else [])]
    )


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
        known = {float(value) for other in alike for value in other.value if not math.isnan(value)}
        low, high = min(known, default=0.0), max(known, default=1.0)
        margin = max(0.08 * (high - low), 0.02 * high, 0.1)
        axis.set_ylim(low - margin if series.name == "clock_mhz" else 0, high + margin)
        axis.set_xlim(start, series.time_s[-1])
        if series.name == "clock_mhz" and len(known) <= _FEW_CLOCKS:
            axis.set_yticks(sorted(known))

"""The figure `capacity`: requests that meet both objectives against request rate, and where 90 and 99 % are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from voltana.analysis import style
from voltana.analysis.figures import Axis, legend, line_name, panels_of, usual_order
from voltana.analysis.runs import RATE, Run, RunSet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TARGETS_PCT = (90.0, 99.0)
LEAST_SHOWN_PCT = 50.0


def capacity(runs: RunSet) -> Figure:
    """A column per model and trace, a colour per policy, a line per seed; that of the runs of `voltana-capacity`.

    Shown are the rates up to the first of each line at which half of the requests fail.

    Args:
        runs: all with a request rate.
    """
    axis_of = Axis(RATE, runs)
    panels = panels_of(runs, axis_of)
    names = sorted({line_name(run, axis_of) for run in runs.runs}, key=usual_order)
    entries: dict[str, Artist] = {}
    with style.figure_style():
        figure = style.new_figure(max(6.4, 1.0 + 2.7 * len(panels)), 3.8)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (panel, members) in zip(grid, panels.items(), strict=True):
            for name in names:
                own = [run for run in members if line_name(run, axis_of) == name]
                entries |= _draw_seeds(axis, name, own, axis_of)
            for target in TARGETS_PCT:
                axis.axhline(target, color="#7F7F7F", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
            axis.set_title("\n".join(panel) if len(panels) > 1 else ", ".join(panel))
            axis.set_xlabel(axis_of.label)
            axis.set_ylim(LEAST_SHOWN_PCT, 101)
            axis.set_yticks([50, 60, 70, 80, *TARGETS_PCT], ["50", "60", "70", "80", "90", "99"])
        grid[0].set_ylabel("Both objectives met (%)")
        legend(figure, entries)
    return figure


def _draw_seeds(axis: Axes, name: str, runs: Sequence[Run], axis_of: Axis) -> Mapping[str, Artist]:
    """A line per seed; the one that the legend shows."""
    look = style.line(name)
    drawn: dict[str, Artist] = {}
    for seed in dict.fromkeys(run.seed for run in runs):
        mine = {axis_of.at(run): run.number("joint_attainment") for run in runs if run.seed == seed}
        points = [(rate, 100 * met) for rate, met in sorted(mine.items()) if met is not None]
        last = next((i for i, (_, met) in enumerate(points) if met < LEAST_SHOWN_PCT), len(points))
        rates, shares = zip(*points[: last + 1], strict=True)
        (line,) = axis.plot(rates, shares, color=look.colour, marker=look.marker, markersize=3, linewidth=1, alpha=0.7)
        drawn[name] = line
    return drawn

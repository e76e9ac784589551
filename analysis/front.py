"""The figure of `voltana-tune`: what was tried, and what nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voltana.analysis import style
from voltana.analysis.figures import legend

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

Place = Sequence[float]


@dataclass(frozen=True)
class Points:
    """Two objectives of each trial.

    Args:
        tried: all trials that were finished; the means of others are over fewer seeds.
        front: those that no other beats, best in the first objective first.
        as_it_is: the policy as it is.
        chosen: the preset; None: there is none.
    """

    tried: Sequence[Place]
    front: Sequence[Place]
    as_it_is: Place
    chosen: Place | None


def front_figure(points: Points, objective: Sequence[str], policy: str) -> Figure:
    """The second objective against the first.

    Args:
        points: what was found.
        objective: the names of the two.
        policy: that was tuned.
    """
    with style.figure_style():
        figure = style.new_figure(6.4, 4.4)
        axis = figure.subplots()
        entries: dict[str, Artist] = {}
        (entries["tried"],) = axis.plot(*_columns(points.tried), "o", color="#B5B5B5", markersize=3.5)
        (entries["none better in both"],) = axis.plot(*_columns(points.front), "-o", color=style.INK, linewidth=1)
        (entries[policy],) = axis.plot(*_columns([points.as_it_is]), "D", color=style.PHASES["decode"], markersize=8)
        if points.chosen is not None:
            place = _columns([points.chosen])
            (entries["the preset"],) = axis.plot(*place, "*", color=style.PHASES["prefill"], markersize=14)
        axis.ticklabel_format(useOffset=False)
        axis.set_xlabel(objective[0])
        axis.set_ylabel(objective[1])
        legend(figure, entries)
    return figure


def _columns(places: Sequence[Place]) -> tuple[list[float], list[float]]:
    return [place[0] for place in places], [place[1] for place in places]

"""How figures look: one colour and marker per policy everywhere, safe for colour-blind readers, nothing superfluous."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple


class Line(NamedTuple):
    """A policy's colour and marker."""

    colour: str
    marker: str


# Colours: Okabe and Ito, "Color Universal Design" (2008), then Tol, "Colour Schemes" (2021), muted.
POLICIES = {
    "static_max": Line("#333333", "s"),
    "static_1005": Line("#0072B2", "v"),
    "voltana": Line("#D55E00", "o"),
    "voltana_released": Line("#E69F00", "D"),
    "voltana_next": Line("#CC79A7", "*"),
    "best_static": Line("#56B4E9", "^"),
    "governor": Line("#009E73", "P"),
    "oracle": Line("#8C8C8C", "X"),
    "dynamollm": Line("#882255", "p"),
    "throttllem": Line("#117733", "<"),
    "greenllm": Line("#999933", ">"),
    "agft": Line("#332288", "h"),
    "dualscale": Line("#AA4499", "d"),
    "power_cap": Line("#661100", "8"),
}
_OTHERS = (
    *(Line(colour, "o") for colour in ("#44AA99", "#CC6677", "#88CCEE", "#DDCC77")),
    *(Line(colour, "s") for colour in ("#44AA99", "#CC6677", "#88CCEE", "#DDCC77")),
)

PHASES = {"prefill": "#0072B2", "decode": "#D55E00"}
INK = "#262626"
FAINT = "#D9D9D9"

PUBLISHED = {"sglang_f1410": "static_max", "sglang_f1005": "static_1005", "voltanallm": "voltana"}
"""The series of the published figures and the policies that stand for them here."""

_RC: Any = {
    "axes.edgecolor": "#7F7F7F",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.dpi": 160,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "voltana",
    "text.color": INK,
    "xtick.color": "#595959",
    "ytick.color": "#595959",
}


def lines(names: Sequence[str]) -> dict[str, Line]:
    """A colour and marker for each line; a policy keeps its own, variants of it and unknown ones take the others."""
    spare = iter(_OTHERS * (1 + len(names) // len(_OTHERS)))
    return {name: POLICIES[name] if name in POLICIES else next(spare) for name in names}


def figure_style() -> AbstractContextManager[None]:
    """The settings of matplotlib under which a figure is built and saved."""
    import matplotlib

    return matplotlib.rc_context(_RC)

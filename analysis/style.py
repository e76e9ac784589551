"""How figures look: one colour and marker per policy everywhere, safe for colour-blind readers, nothing superfluous."""

from __future__ import annotations

import colorsys
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Marker = str | tuple[int, int, float]
"""As of matplotlib: a letter, or number of sides, style (0: polygon, 1: star) and angle."""


class Line(NamedTuple):
    """A policy's colour and marker."""

    colour: str
    marker: Marker


# Colours: Okabe and Ito, "Color Universal Design" (2008), then Tol, "Colour Schemes" (2021), muted.
POLICIES = {
    "static_max": Line("#333333", "s"),
    "static_1005": Line("#0072B2", "v"),
    "voltana": Line("#D55E00", "o"),
    "voltana_released": Line("#E69F00", "D"),
    "voltana_next": Line("#CC79A7", "*"),
    "voltana_online": Line("#DDCC77", "o"),
    "best_static": Line("#56B4E9", "^"),
    "governor": Line("#009E73", "P"),
    "oracle": Line("#8C8C8C", "X"),
    "dynamollm": Line("#882255", "p"),
    "throttllem": Line("#117733", "<"),
    "greenllm": Line("#999933", ">"),
    "agft": Line("#332288", "h"),
    "dualscale": Line("#AA4499", "d"),
    "power_cap": Line("#661100", "8"),
    "polca": Line("#44AA99", "H"),
    "ecofreq_decode": Line("#44AA99", "o"),
    "ecofreq_only": Line("#CC6677", "o"),
    "ecofreq_prefill": Line("#88CCEE", "o"),
    "levels_3": Line("#CC6677", "s"),
    "levels_5": Line("#88CCEE", "s"),
    "levels_15mhz": Line("#44AA99", "s"),
    "next_clocks": Line("#DDCC77", "D"),
    "next_queue": Line("#88CCEE", "D"),
    "next_triage": Line("#44AA99", "D"),
    "next_pack": Line("#CC6677", "D"),
    "next_pace": Line("#882255", "D"),
    "offline": Line("#44AA99", "v"),
    "online": Line("#CC6677", "v"),
    "window_0.1s": Line("#44AA99", "^"),
    "window_0.5s": Line("#CC6677", "^"),
    "window_1s": Line("#88CCEE", "^"),
    "window_5s": Line("#DDCC77", "^"),
}
"""Those that are shipped, in the order of a legend. All others get markers that none of these has: `line`."""

_OTHER_MARKERS: tuple[Marker, ...] = (
    *((sides, 1, 0.0) for sides in (3, 4, 6, 8)),  # stars
    (3, 0, 30.0),
    (4, 0, 22.5),
    (5, 0, 36.0),
    (3, 1, 180.0),
    (4, 1, 45.0),
)
_HUES = 24
_SALT = b"2744"
"""Such that the lines of experiment=routing, which differ in a parameter, are far apart."""

PHASES = {"prefill": "#0072B2", "decode": "#D55E00"}
PARTS = ("#8A929A", "#5C7FA3", "#1B8A77", "#D0532B")
"""Of the parts of energy, in the order of `voltana.analysis.energy.PARTS`; as in the report."""
INK = "#262626"
FAINT = "#D9D9D9"

PUBLISHED = {"sglang_f1410": "static_max", "sglang_f1005": "static_1005", "voltanallm": "voltana"}
"""The series of the published figures and the policies that stand for them here."""

TEX = "pdflatex"
"""Measures the letters of a .pgf."""

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
    "pgf.rcfonts": False,  # the letters are those of the document
    "pgf.texsystem": TEX,
    "svg.hashsalt": "voltana",
    "text.parse_math": False,  # a dollar sign in a label is one
    "text.color": INK,
    "xtick.color": "#595959",
    "ytick.color": "#595959",
}


WIDTHS = {"column": 3.33, "text": 7.0}
"""Inches of a column and of the whole text in two-column papers (ACM, USENIX)."""
_LEAST_SHRINK = 0.75
"""A figure that is made narrower keeps this share of its height, as its letters do not shrink with it."""
_asked: ContextVar[str | None] = ContextVar("page_width", default=None)
_RC_OF_A_PAPER: Any = {
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "font.size": 7.5,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
}


def line(name: str) -> Line:
    """The colour and marker of a policy: its own if it is shipped, else told by its name alone."""
    if name in POLICIES:
        return POLICIES[name]
    hashed = int.from_bytes(blake2b(name.encode(errors="replace"), digest_size=8, salt=_SALT).digest())
    hashed, hue = divmod(hashed, _HUES)
    hashed, dark = divmod(hashed, 2)
    red, green, blue = colorsys.hls_to_rgb(hue / _HUES, (0.44, 0.3)[dark], 0.65)
    colour = "#" + "".join(f"{round(255 * part):02X}" for part in (red, green, blue))
    return Line(colour, _OTHER_MARKERS[hashed % len(_OTHER_MARKERS)])


def scale(count: int) -> list[str]:
    """So many colours from light to dark, for what rises."""
    shares = [0.5 if count == 1 else index / (count - 1) for index in range(count)]
    light, dark = (0xD6, 0xE6, 0xF2), (0x0A, 0x2A, 0x4D)
    return [
        "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in zip(light, dark, strict=True)) for share in shares
    ]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; within `figure_style`, and as wide as `page_width` has it, if anything has."""
    from matplotlib.figure import Figure

    asked = WIDTHS.get(_asked.get() or "")
    if asked is not None:
        width, height = asked, height * max(asked / width, _LEAST_SHRINK)
    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def page_width(name: str | None) -> Iterator[None]:
    """Figures built within are as wide as a column or the text of a paper, a key of `WIDTHS`; None: as they come."""
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


@contextmanager
def figure_style() -> Iterator[None]:
    """The settings of matplotlib under which a figure is built and saved; those of the user have no say."""
    if "matplotlib" not in sys.modules:
        with _without_settings():
            import matplotlib
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        if _asked.get() is not None:
            matplotlib.rcParams.update(_RC_OF_A_PAPER)
        yield


@contextmanager
def _without_settings() -> Iterator[None]:
    """Nowhere for matplotlib to find a backend or a file of settings: a broken one would stop its import."""
    kept = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ["MATPLOTLIBRC"] = os.devnull
    try:
        with chdir(Path(__file__).parent):  # it looks in the current folder first
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in kept.items() if value is not None})

"""The end of an experiment: its table and its figure, made when the last run of the sweep has ended.

A Hydra callback, named in the presets of `conf/experiment/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from voltana.errors import UserError
from voltana.files import write_whole
from voltana.record import SUMMARY

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from voltana.analysis.runs import RunSet

DRAWN = ".figure.json"
"""How the figure that is there was asked for."""


class Report(Callback):
    """Compares the runs of a sweep, prints the table, and writes `table.csv`, `table.md` and `figure.png` beside them.

    Args:
        figure: as of `voltana-plot`: curves or tradeoff.
        x: the configuration key along the axis of curves.
        baseline: the policy whose energy the others save.
        oracle: the policy whose energy theirs is shown over, where it is there.
    """

    def __init__(
        self, figure: str = "curves", x: str = "rps", baseline: str = "static_max", oracle: str = "oracle"
    ) -> None:
        self._figure = figure
        self._x = x
        self._baseline = baseline
        self._oracle = oracle

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Report on the sweep that has ended; bad input ends the command, where Hydra would only warn."""
        try:
            self._report(Path(str(config.hydra.sweep.dir)))
        except UserError as error:
            print(f"{config.hydra.job.name}: error: {error}", file=sys.stderr)
            sys.exit(2)

    def _report(self, folder: Path) -> None:
        from voltana.analysis import commands, tables
        from voltana.analysis.runs import load_runs

        runs = load_runs([folder])
        comparison = tables.compare(runs, self._baseline, self._oracle)
        write_whole(folder / "table.csv", tables.csv_text(comparison))
        write_whole(folder / "table.md", tables.markdown(comparison, "short"))
        self._draw(runs, folder)
        notes = [*comparison.notes, *(f"Wrote {folder / name}" for name in ("table.csv", "table.md", "figure.png"))]
        commands.print_table(tables.caption(runs), tables.rich_table(comparison, "short"), notes)

    def _draw(self, runs: RunSet, folder: Path) -> None:
        """Draw the figure, unless it is there, of these runs and by this code."""
        from voltana.analysis import figures

        drawn, asked = folder / DRAWN, json.dumps([self._figure, self._x, self._baseline])
        of = [*(run.record.folder / SUMMARY for run in runs.runs), *Path(__file__).parent.rglob("*.py")]
        if (folder / "figure.png").is_file() and _is_newer(drawn, of) and drawn.read_text(encoding="utf-8") == asked:
            return
        draw = figures.tradeoff(runs, self._baseline) if self._figure == "tradeoff" else figures.curves(runs, x=self._x)
        figures.save(draw, folder / "figure.png")
        write_whole(drawn, asked)


def _is_newer(made: Path, of: Sequence[Path]) -> bool:
    return made.is_file() and made.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in of)

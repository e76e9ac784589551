"""The end of an experiment: its table, its figure and its page, made when the last run of the sweep has ended.

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
"""How the figure and the page that are there were asked for."""
_CODE = ("*.py", "*.html", "*.css", "*.js")
_WRITTEN = ("table.csv", "table.md", "figure.png", "report.html")


class Report(Callback):
    """Compares the runs of a sweep, prints the table, and writes beside them what `_WRITTEN` names.

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
        notes = [*comparison.notes, *(f"Wrote {folder / name}" for name in _WRITTEN)]
        commands.print_table(tables.caption(runs), tables.rich_table(comparison, "short"), notes)

    def _draw(self, runs: RunSet, folder: Path) -> None:
        """Draw the figure and the page, unless they are there, of these runs and by this code."""
        from voltana.analysis import figures
        from voltana.analysis.page.write import Options, write_report

        drawn, asked = folder / DRAWN, json.dumps([self._figure, self._x, self._baseline, self._oracle])
        code = (path for ending in _CODE for path in Path(__file__).parent.rglob(ending))
        there = all((folder / name).is_file() for name in _WRITTEN)
        of = [*(run.record.folder / SUMMARY for run in runs.runs), *code]
        if there and _is_newer(drawn, of) and drawn.read_text(encoding="utf-8") == asked:
            return
        draw = figures.tradeoff(runs, self._baseline) if self._figure == "tradeoff" else figures.curves(runs, x=self._x)
        figures.save(draw, folder / "figure.png")
        x = "auto" if self._figure == "tradeoff" else self._x
        write_report(runs, folder / "report.html", Options(baseline=self._baseline, oracle=self._oracle, x=x))
        write_whole(drawn, asked)


def _is_newer(made: Path, of: Sequence[Path]) -> bool:
    return made.is_file() and made.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in of)

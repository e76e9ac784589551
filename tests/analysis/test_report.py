"""The end of an experiment leaves its table, its figure and its page beside the runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from voltana.analysis import figures
from voltana.analysis.report import Report


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["curves", "tradeoff"])
def test_table_and_figure(
    tmp_path: Path, write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], figure: str
) -> None:
    write_run("0", "static_max", 200, rps=50)
    write_run("1", "voltana", 150, rps=50)
    Report(figure).on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    printed = capsys.readouterr().out
    assert "25.0" in printed and printed.splitlines()[-1] == f"Wrote {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "| voltana | 1 | 150.0 |" in " ".join((tmp_path / "table.md").read_text().replace("|", " | ").split())
    assert (tmp_path / "table.csv").read_text().count("\n") == 3
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_figure_of_the_same_runs_is_not_drawn_again(
    tmp_path: Path, write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(figures, "curves", lambda runs, x: drawn.append("curves"))
    monkeypatch.setattr(figures, "tradeoff", lambda runs, baseline: drawn.append("tradeoff"))
    monkeypatch.setattr(figures, "save", lambda figure, path: path.write_text(""))

    def report(figure: str) -> list[str]:
        Report(figure).on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
        return drawn

    write_run("0", "static_max", 200, rps=50)
    assert report("curves") == ["curves"]
    assert report("curves") == ["curves"]
    assert report("tradeoff") == ["curves", "tradeoff"]
    write_run("1", "voltana", 150, rps=50)
    assert len(report("tradeoff")) == 3
    (tmp_path / "figure.png").unlink()
    assert len(report("tradeoff")) == 4

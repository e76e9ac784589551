"""What a terminal cannot show, or a user's text that looks like markup, stops nothing and changes nothing."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from voltana.app.terminal import plain_console, take_any_text

SCRIPTS = Path(sys.executable).parent
SURROUNDINGS = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TZ": "Asia/Kathmandu",
    "MPLBACKEND": "no",
}
PROFILE = ("profile.clocks_mhz=[1005,1410]", "profile.prefill.samples=4", "profile.decode.samples=5")


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="[bold]title :x:")
    table.add_column("[red]", no_wrap=True)
    table.add_row("[/nope] :smile:")
    console = plain_console(width=60)
    console.print("[link=x]y[/link] :tada:")
    console.print(table)
    out = capsys.readouterr().out
    assert all(text in out for text in ("[link=x]y[/link] :tada:", "[bold]title :x:", "[red]", "[/nope] :smile:"))


def test_what_an_encoding_lacks_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    take_any_text()
    plain_console(width=40).print("3 ± 1 \udce4")
    sys.stdout.flush()
    assert written.getvalue() == b"3 ? 1 ?\n"


@pytest.mark.slow
def test_surroundings_change_no_number_and_no_status(tmp_path: Path) -> None:
    found = []
    for index, extra in enumerate(({}, SURROUNDINGS)):
        folder = tmp_path / str(index)
        folder.mkdir()
        for words in (
            ["voltana-sim", "policy=static_max", "duration_s=1", *PROFILE, "hydra.run.dir='_[b]:x:'"],
            ["voltana-compare", "runs=.", "csv=t.csv", "markdown=t.md"],
        ):
            command = [str(SCRIPTS / words[0]), *words[1:]]
            done = subprocess.run(command, cwd=folder, env={**os.environ, **extra}, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
        names = ("_[b]:x:/config.yaml", "_[b]:x:/requests.parquet", "_[b]:x:/instances.parquet", "t.csv", "t.md")
        found.append([(folder / name).read_bytes() for name in names])
    assert found[0] == found[1]

"""`--help` shows what conf/ has, on two screens, at once, and needs nothing that the base installation lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from voltana import conf
from voltana.app.help import WIDTH, help_page

CONF = Path(conf.__path__[0])
COMMANDS = {
    "voltana-sim": "sim",
    "voltana-live": "live",
    "voltana-profile": "profiling",
    "voltana-fit": "fit",
    "voltana-check": "check",
    "voltana-compare": "compare",
    "voltana-plot": "plot",
    "voltana-report": "report",
}
SCRIPTS = Path(sys.executable).parent


def page(command: str, *words: str) -> str:
    return help_page(command, COMMANDS[command], "pkg://voltana.conf", words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_and_every_key_is_there(command: str) -> None:
    shown = page(command)
    loaded = yaml.safe_load((CONF / f"{COMMANDS[command]}.yaml").read_text())
    groups = [g for each in loaded.pop("defaults") if isinstance(each, dict) for g in each if " " not in g]
    for group in groups:
        chosen = shown.partition(f"\n  {group} ")[2]
        assert chosen
        for file in (CONF / group).rglob("*.yaml"):
            assert file.stem in chosen
    for key, value in loaded.items():
        if key != "hydra" and not isinstance(value, dict | str | None):
            assert f"  {key}={str(value).lower() if isinstance(value, bool) else value}" in shown
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert shown.count("\n") < 135


def test_what_the_files_say_is_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "policy" / "inner").mkdir(parents=True)
    (tmp_path / "rule").mkdir()
    (tmp_path / "main.yaml").write_text(
        "# tool: does it.\ndefaults:\n  - _self_\n  - policy: good\n  - override hydra/job_logging: none\n\n"
        "rps: 75      # requests, a second: # of them\n# Above,\n# twice.\nrange: [1, 2]\nword: 'a # b'\n"
        "needed: ???\nbox:       # holds\n  inner: null   # nothing\n"
        "hydra:\n  help:\n    header: |-\n      tool rps=1\n"
    )
    (tmp_path / "policy" / "good.yaml").write_text("# @package policy\n# Good for most.\n# Not for all.\nname: good\n")
    (tmp_path / "policy" / "bare.yaml").write_text("name: bare\n")
    (tmp_path / "policy" / "inner" / "odd.yaml").write_text("defaults:\n  - /rule@part: one\nname: odd\n")
    (tmp_path / "rule" / "one.yaml").write_text("name: one\n")
    own = tmp_path / "own" / "policy"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# My [bold] own.\nbroken: [\n")
    lines = help_page("tool", "main", str(tmp_path), ["--help", "--config-dir", str(own.parent)]).splitlines()
    assert lines[: lines.index("Flags:") - 1] == [
        "tool: does it.",
        "",
        "Usage: tool [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]",
        "",
        "Examples:",
        "  tool rps=1",
        "",
        "Choices (* is what you get without saying):",
        "  policy  bare",
        "          good *  Good for most",
        "          mine    My [bold] own",
        "          inner/: odd",
        "  rule@policy.part: one",
        "",
        "Keys, with their defaults:",
        "  rps=75          requests, a second: # of them",
        "  range=[1, 2]    Above, twice.",
        "  word='a # b'",
        "  needed=...      (required)",
        "  box:            holds",
        "  box.inner=null  nothing",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_show_it_without_hydra(command: str, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.metadata as m; sys.argv[1:] = ['-h'];"
        f"(entry,) = m.entry_points(group='console_scripts', name={command!r});"
        "entry.load()(); print({'hydra', 'rich', 'pandas', 'numpy', 'uvloop', 'zmq'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == page(command) + "\nset()\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([SCRIPTS / "voltana-sim", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")

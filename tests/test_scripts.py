"""The console scripts: all tell the version, and files in a user's folder named like our packages change nothing."""

import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

import voltana
from voltana.record import find_records

ROOT = Path(voltana.__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("analysis", "conf", "live", "sim", "traces")
POLICY = """
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1005)
"""
BUNDLE = """
defaults:
  - /frequency@prefill_controller: static
  - /router@prefill_router: random
  - /router@decode_router: round_robin
  - _self_
name: mine
decode_controller: {_target_: mine.Mine}
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """A user's folder with a policy, and with every name of our folders taken."""
    for name in ROOMS:
        (tmp_path / name).mkdir()
        for path in (tmp_path / f"{name}.py", tmp_path / name / "__init__.py"):
            path.write_text("raise RuntimeError('the wrong one')\n")
    (tmp_path / "mine.py").write_text(POLICY)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text(BUNDLE)
    return tmp_path


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_sweep_and_its_workers_find_ours_and_the_users_policy(folder: Path) -> None:
    scripts = Path(sys.executable).parent
    sweep = ("--config-dir", ".", "-m", "policy=static_max,mine", "rps=5", "duration_s=1", "hydra.sweep.dir=runs")
    run(folder, str(scripts / "voltana-sim"), *sweep)
    assert {record.config["policy"]["name"] for record in find_records([folder / "runs"])} == {"static_max", "mine"}
    assert "mine" in run(folder, str(scripts / "voltana-compare"), "runs=runs", "columns=short")


@pytest.mark.slow
def test_modules_run_by_name_find_ours(folder: Path) -> None:
    assert "usage" in run(folder, sys.executable, "-m", "voltana.sim.studies.bound", "--help")


def test_processes_that_commands_start_look_past_the_folder_they_are_typed_in() -> None:
    started = re.compile(r'(?<!"python", )"-m",\s*"voltana\.')
    safe = re.compile(r'"-P",\s*"-m",\s*"voltana\.')
    around = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    wrong = [path for path in around if len(started.findall(path.read_text())) != len(safe.findall(path.read_text()))]
    assert around and not wrong


@pytest.mark.parametrize("name", SETTINGS["project"]["scripts"])
def test_every_script_tells_the_version(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    module, _, function = SETTINGS["project"]["scripts"][name].partition(":")
    with suppress(SystemExit):
        getattr(import_module(module), function)()
    assert capsys.readouterr().out == f"{name} {voltana.__version__} (pure Python)\n"

"""The console scripts: all are alike, and files in a user's folder named like our packages do not take their place."""

import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import voltana.scripts

from voltana.record import find_records

ROOT = Path(voltana.scripts.__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
    """A user's folder with a policy, and with every name of ours taken."""
    for name in voltana.BESIDE:
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


def test_a_sweep_and_its_workers_find_ours_and_the_users_policy(folder: Path) -> None:
    scripts = Path(sys.executable).parent
    sweep = ("--config-dir", ".", "-m", "policy=static_max,mine", "rps=5", "duration_s=1", "hydra.sweep.dir=runs")
    run(folder, str(scripts / "voltana-sim"), *sweep)
    assert {record.config["policy"]["name"] for record in find_records([folder / "runs"])} == {"static_max", "mine"}
    assert "mine" in run(folder, str(scripts / "voltana-compare"), "runs=runs", "columns=short")


def test_processes_that_commands_start_find_ours(folder: Path) -> None:
    assert "usage" in run(folder, *voltana.scripts.module_command("voltana.sim.run.rerun", "--help"))
    started = re.compile(r'sys\.executable,\s*"-m",\s*"(?:live|sim|analysis|traces)\b')
    around = [path for package in voltana.BESIDE for path in (ROOT / package).rglob("*.py")]
    assert not [path for path in around if started.search(path.read_text())], "voltana.scripts.module_command"


def test_every_script_is_one_that_sees_to_it() -> None:
    for name, target in SETTINGS["project"]["scripts"].items():
        module, _, function = target.partition(":")
        assert module == "voltana.scripts", name
        assert callable(getattr(voltana.scripts, function))


@pytest.mark.parametrize("name", SETTINGS["project"]["scripts"])
def test_every_script_tells_the_version(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with suppress(SystemExit):
        getattr(voltana.scripts, SETTINGS["project"]["scripts"][name].partition(":")[2])()
    assert capsys.readouterr().out == f"{name} {voltana.__version__}\n"


def test_every_package_of_ours_comes_first() -> None:
    packages = {name.partition(".")[0] for name in SETTINGS["tool"]["setuptools"]["packages"]}
    assert packages == {"voltana", "hydra_plugins", *voltana.BESIDE}

"""The wheel holds everything the commands need."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from voltana.app import extras

ROOT = Path(__file__).parents[1]
TOP_LEVEL = ("voltana", "sim", "live", "traces", "conf", "analysis")


WITHOUT_EXTRAS = """
import contextlib, io, importlib, os, sys
for name in {modules!r}:
    sys.modules[name] = None  # as if it were not installed
def exit_status(module, function, words):
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as exit:
        return exit.code or 0
    return 0
os._exit = sys.exit
for command, target in {scripts!r}.items():
    words = {words!r}.get(command) if {run!r} else ["--help"]
    if words is None:
        continue
    sys.argv = [command, *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = exit_status(*target.split(":"), words)
    print(command, status, len(out.getvalue()), (err.getvalue().strip().splitlines() or [""])[-1], sep="|")
"""
NEEDS_LIVE = {
    "voltana-live": ["rps=1"],
    "voltana-router": ["--prefill", "http://127.0.0.1:1,2", "--decode", "http://127.0.0.1:3"],
    "voltana-clocks": ["--gpus", "0"],
    "voltana-profile": ["source=sglang", "out=never.csv", "profile.servers=emulated"],
}


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


def without_extras(folder: Path, *, run: bool) -> dict[str, list[str]]:
    """What each script does on the base installation: exit status, length of its output, last line of errors."""
    modules = [name for names in extras.MODULES.values() for name in names]
    code = WITHOUT_EXTRAS.format(modules=modules, scripts=project()["scripts"], words=NEEDS_LIVE, run=run)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines()}


def test_help_of_every_command_works_on_the_base_installation(tmp_path: Path) -> None:
    told = without_extras(tmp_path, run=False)
    assert set(told) == set(project()["scripts"])
    for command, (status, length, error) in told.items():
        assert (status, error) == ("0", "") and int(length) > 200, (command, error)


def test_what_needs_an_extra_says_so_in_one_line(tmp_path: Path) -> None:
    told = without_extras(tmp_path, run=True)
    assert set(told) == set(NEEDS_LIVE)
    for command, (status, _, error) in told.items():
        assert status == "2" and error.startswith(f"{command}: error: "), error
        assert "needs httptools, msgspec, pynvml, uvloop, zmq, allowed: after pip install 'voltana[live]'" in error


def test_live_is_light_and_torch_an_extra_of_its_own() -> None:
    optional = project()["optional-dependencies"]
    names = {extra: {line.partition(">")[0] for line in lines} for extra, lines in optional.items()}
    assert names["live"] == {"httptools", "msgspec", "nvidia-ml-py", "pyzmq", "uvloop"}
    assert "torch" in names["profile"] and "torch" not in names["dev"]
    assert set(names) == {*extras.MODULES, "dev"}


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed_as = {folder: name for name, folder in settings["package-dir"].items()}
    found = {
        installed_as.get("/".join(parts), ".".join(parts))
        for top in TOP_LEVEL
        for parts in (path.parent.relative_to(ROOT).parts for path in (ROOT / top).rglob("__init__.py"))
    }
    assert found == set(settings["packages"])


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_says_what_it_does_before_it_installs(target: str, tmp_path: Path) -> None:
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (install,) = (index for index, line in enumerate(lines) if " pip install " in line)
    assert lines[install - 1].startswith('echo "Installing voltana')

"""The wheel holds everything the commands need."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from voltana.app import extras

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ROOMS = ("sim", "live", "traces", "conf", "analysis")


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
NEEDS_LIVE = "httptools, msgspec, pynvml, uvloop, zmq, allowed: after pip install 'voltana[live]'"
NEEDS = {
    "voltana-tune": "optuna, allowed: after pip install 'voltana[tune]'",
    "voltana-live": NEEDS_LIVE,
    "voltana-router": NEEDS_LIVE,
    "voltana-clocks": NEEDS_LIVE,
    "voltana-profile": NEEDS_LIVE,
}
WORDS = {
    "voltana-tune": ["space={decode_controller.margin: 0..1}"],
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
    code = WITHOUT_EXTRAS.format(modules=modules, scripts=project()["scripts"], words=WORDS, run=run)
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
    assert set(told) == set(WORDS) == set(NEEDS)
    for command, (status, _, error) in told.items():
        assert status == "2" and error.startswith(f"{command}: error: "), error
        assert f"needs {NEEDS[command]}" in error


def test_live_is_light_and_torch_an_extra_of_its_own() -> None:
    optional = project()["optional-dependencies"]
    names = {extra: {line.partition(">")[0] for line in lines} for extra, lines in optional.items()}
    assert names["live"] == {"httptools", "msgspec", "nvidia-ml-py", "packaging", "pyzmq", "uvloop"}
    assert "torch" in names["profile"] and "torch" not in names["dev"]
    assert set(names) == {*extras.MODULES, "dev", "sglang"}  # the last is for an environment of its own


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed_as = {folder: name for name, folder in settings["package-dir"].items()}
    found = {
        installed_as.get("/".join(parts), ".".join(parts if parts[0] == "voltana" else ("voltana", *parts)))
        for top in ("voltana", *ROOMS)
        for parts in (path.parent.relative_to(ROOT).parts for path in (ROOT / top).rglob("__init__.py"))
        if not (parts[0] == "voltana" and parts[1:2] and parts[1] in ROOMS)
    }
    assert found == set(settings["packages"])


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_says_what_it_does_before_it_installs(target: str, tmp_path: Path) -> None:
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (install,) = (index for index, line in enumerate(lines) if " pip install " in line)
    assert lines[install - 1].startswith('echo "Installing voltana')


@pytest.fixture(scope="module", name="elsewhere")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment into which a wheel of this project was installed, and nothing else of it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheel = (*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    (packages,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(packages)
    theirs = [path for path in map(Path, sysconfig.get_paths().values()) if path.name == "site-packages"]
    (packages / "theirs.pth").write_text(str(theirs[0]))  # what this project needs, but not its editable install
    return folder / "venv" / "bin" / "python"


def test_the_wheel_has_one_name_of_ours(elsewhere: Path) -> None:
    with zipfile.ZipFile(next(elsewhere.parents[2].glob("*.whl"))) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"voltana", "hydra_plugins"}
    assert {name for name in names if name.startswith("hydra_plugins/") and name.count("/") == 1} == set()
    page = {
        f"voltana/analysis/page/{name}"
        for name in ("template.html", "vendor/uPlot.LICENSE", "vendor/uPlot.iife.min.js")
    }
    shipped = {*page, "voltana/conf/policy/voltana.yaml", "voltana/traces/data/sharegpt.json", "voltana/py.typed"}
    assert shipped <= set(names)


def test_the_wheel_runs_beside_packages_that_are_named_as_our_folders(elsewhere: Path, tmp_path: Path) -> None:
    (packages,) = elsewhere.parents[1].glob("lib/python3*/site-packages")
    for name in ROOMS:  # as `pip install traces` does, and as a user's own folder may
        for folder in (packages / name, tmp_path / name):
            folder.mkdir()
            (folder / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    script = (
        "from voltana.sim.run.commands import simulate; import voltana; assert 'venv' in voltana.__file__; simulate()"
    )
    words = ("policy=voltana", "rps=5", "duration_s=1", "hydra.run.dir=run")
    done = subprocess.run(
        [elsewhere, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()

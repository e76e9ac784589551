"""The wheel holds everything the commands need."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = ("voltana", "sim", "live", "traces", "conf", "analysis")


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

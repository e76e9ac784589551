"""The wheel holds everything the commands need."""

import tomllib
from pathlib import Path

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

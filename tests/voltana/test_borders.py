"""Imports go the ways that the design allows, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import voltana

ROOT = Path(voltana.__file__).parents[1]
BORDER = (
    "voltana.section",
    "voltana.state",
    "voltana.dispatch",
    "voltana.errors",
    "voltana.checks",
    "voltana.files",
    "voltana.conf",
)
LIBRARY = {*BORDER, "voltana.policies", "voltana.prediction", "voltana.record", "voltana.app"}
SIMULATOR = ("plant", "serving", "reference", "fast", "run", "studies", "calibration", "launcher")
MAY_IMPORT = {
    **{name: set(BORDER) for name in BORDER},
    "voltana.policies": {*BORDER, "voltana.prediction"},
    "voltana.prediction": {*BORDER, "voltana.record", "voltana.app"},
    "voltana.record": set(BORDER),
    "voltana.app": LIBRARY,
    "voltana.traces": LIBRARY,
    "voltana.sim": {*LIBRARY, "voltana.traces"},
    "voltana.live": {*LIBRARY, "voltana.traces", "voltana.sim.plant", "voltana.sim.serving"},
    "voltana.api": {*LIBRARY, "voltana.analysis", "voltana.sim"},
    "voltana.tuning": {*LIBRARY, "voltana.analysis", "voltana.sim"},
    "voltana.analysis": {*LIBRARY, "voltana.traces", "voltana.sim.plant"},
}
"""What each room may import beside itself."""
OUTERMOST = {f"voltana.sim.run.worker imports voltana.sim.studies.{study}" for study in ("bound", "stationary")}
"""What the commands add to a run; the run itself does not know it."""
WITHIN_THE_SIMULATOR: dict[str, tuple[str, ...]] = {
    "plant": (),
    "serving": ("plant",),
    "reference": ("plant", "serving"),
    "fast": ("plant", "serving"),
    "run": ("plant", "serving", "reference", "fast", "launcher"),
    "launcher": ("run",),
    "studies": (*SIMULATOR[:6], "launcher"),
    "calibration": (*SIMULATOR[:6], "calibration"),
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name; its folder may be a symbolic link."""
    base = ROOT.joinpath(*package.split("."))
    found = {package: base.with_suffix(".py")} if base.with_suffix(".py").is_file() else {}
    for path in sorted(base.resolve().rglob("*.py")):
        parts = [package, *path.relative_to(base.resolve()).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL = {name: path for package in MAY_IMPORT for name, path in modules(package).items()}


def imports(name: str) -> set[str]:
    """Our modules that a module imports, inside functions too."""
    return {found for found in map(_ours, _imported(name)) if found}


def _imported(name: str) -> Iterator[str]:
    package = name if ALL[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(ALL[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _ours(dotted: str) -> str | None:
    """The module that a dotted name leads to, if it is one of ours."""
    while dotted and dotted not in ALL:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.slow
@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package: str) -> None:
    allowed = {package, *MAY_IMPORT[package]}
    wrong = {
        f"{name} imports {other}"
        for name in modules(package)
        for other in imports(name)
        if not any(within(other, each) for each in allowed)
    }
    assert not wrong


def test_the_plant_stands_alone() -> None:
    wrong = {f"{name} imports {other}" for name, other in simulator("plant") if within(other, "voltana.prediction")}
    wrong |= {f"{name} imports {other}" for name, other in simulator("plant") if within(other, "voltana.policies")}
    assert not wrong


def simulator(room: str) -> Iterator[tuple[str, str]]:
    """Each import within a room of the simulator."""
    return ((name, other) for name in modules(f"voltana.sim.{room}") for other in imports(name))


@pytest.mark.parametrize("room", SIMULATOR)
def test_arrows_within_the_simulator(room: str) -> None:
    allowed = [f"voltana.sim.{each}" for each in (room, *WITHIN_THE_SIMULATOR[room])]
    wrong = {
        f"{name} imports {other}"
        for name, other in simulator(room)
        if within(other, "voltana.sim") and not any(within(other, each) for each in allowed)
    }
    assert not wrong - OUTERMOST


def test_the_simulator_has_no_other_rooms() -> None:
    shown = {path.name for path in (ROOT / "sim").iterdir() if not path.name.startswith("__pycache__")}
    assert shown == {*SIMULATOR, "__init__.py"} and len(shown) <= 10


def test_the_policy_library_knows_no_world() -> None:
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for package in ("voltana.state", "voltana.dispatch", "voltana.policies", "voltana.prediction", "voltana.record")
        for name in modules(package)
        for node in ast.walk(ast.parse(ALL[name].read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if not isinstance(node, ast.ImportFrom) or node.module
    }
    assert not roots & {"simpy", "pynvml", "requests", "httpx", "aiohttp", "urllib", "http", "sglang"}


@pytest.mark.slow
def test_no_import_circles() -> None:
    graph = {name: imports(name) - {name} for name in ALL}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_walk_sees_imports() -> None:
    assert "voltana.prediction.ecopred" in imports("voltana.policies.ecofreq")
    assert "voltana.errors" in imports("voltana.policies.build")
    assert "hydra" not in {name.split(".")[0] for name in imports("voltana.app.cli")}
    assert len(ALL) > 20


def test_the_views_of_records_start_nothing() -> None:
    """What they show is what a record holds; nothing is run behind it."""
    roots = {found.split(".")[0] for name in modules("voltana.analysis") for found in _imported(name)}
    assert "csv" in roots and not roots & {"subprocess", "multiprocessing", "concurrent", "runpy"}

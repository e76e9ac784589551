"""Whatever a policy of one's own does wrong, the last line says what, where and what is allowed: README's path."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import voltana.sim.run.commands
from voltana.errors import PolicyError
from voltana.record import SUMMARY
from voltana.sim.run.simulate import simulate

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[2] / "cases" / "policies"
PARTS = {
    "prefill_controller": "/frequency@{}: static",
    "decode_controller": "/frequency@{}: static",
    "prefill_router": "/router@{}: random",
    "decode_router": "/router@{}: round_robin",
}


class Case(NamedTuple):
    """A module with a class `Mine`, and what is said of it, as its first lines tell."""

    name: str
    part: str
    given: dict[str, Any]
    built: bool
    """Whether it is refused before anything runs."""
    says: list[str]
    """Parts of the last line, in this order."""
    above: str
    """In the traceback above it; empty if there is none."""

    @property
    def config(self) -> dict[str, Any]:
        return {"_target_": f"{self.name}.Mine", **self.given}


def read(path: Path) -> Case:
    told = dict(re.findall(r"^# (\w+): (.*)$", path.read_text(), flags=re.MULTILINE))
    return Case(
        path.stem,
        told.get("part", "decode_controller"),
        yaml.safe_load(told.get("given", "{}")),
        told.get("built") == "yes",
        told["says"].split("|"),
        told.get("above", ""),
    )


ALL = [read(path) for path in sorted(CASES.glob("*.py"))]


@pytest.fixture(autouse=True)
def _can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CASES)


def assert_says(case: Case, line: str) -> None:
    assert "policy mine: " in line and case.part in line
    wanted = ".*".join(map(re.escape, case.says))
    assert re.search(wanted, line), f"{line}\ndoes not say\n{case.says}"


def test_there_are_cases() -> None:
    assert len(ALL) > 30


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_last_line_says_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    others = [line.format(part) for part, line in PARTS.items() if part != case.part]
    defaults = [*(dict([line.split(": ")]) for line in others), "_self_"]
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "mine.yaml").write_text(
        yaml.safe_dump({"defaults": defaults, "name": "mine", case.part: case.config})
    )
    monkeypatch.chdir(tmp_path)
    words = ["--config-dir", ".", "policy=mine", "rps=50", "duration_s=3", "hydra.run.dir=run"]
    monkeypatch.setattr(sys, "argv", ["voltana-sim", *words])
    with pytest.raises(SystemExit) as stop:
        voltana.sim.run.commands.simulate()
    assert stop.value.code == 2
    *above, line = capfd.readouterr().err.splitlines()
    assert line.startswith("voltana-sim: error: ")
    assert_says(case, line)
    assert (f"run {tmp_path / 'run'}: " in line) != case.built
    assert not (tmp_path / "run" / SUMMARY).exists()
    assert bool(above) == bool(case.above)
    if case.above:
        assert above[0] == "Traceback (most recent call last):" or not any("Traceback" in each for each in above)
        assert any(case.above in each for each in above)
        files = re.findall(r'^ *File "(.+?)"', "\n".join(above), flags=re.MULTILINE)
        assert all(Path(file).parent == CASES for file in files), "only the policy's own code"
        assert bool(files) != (case.name == "takes_nothing")


@pytest.mark.parametrize("case", [case for case in ALL if not case.built], ids=lambda case: case.name)
def test_the_reference_engine_says_the_same(case: Case, values: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    said = []
    for engine in ("fast", "reference"):
        with pytest.raises(PolicyError) as caught:
            simulate(plain(case, values) | {"engine": engine}, tmp_path / engine)
        assert_says(case, str(caught.value))
        assert not (tmp_path / engine / SUMMARY).exists()
        said.append(str(caught.value).replace(str(tmp_path / engine), ""))
    assert said[0] == said[1]


_COMPOSED: dict[str, Any] = {}


def plain(case: Case, values: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The configuration of a case, composed once for all."""
    if not _COMPOSED:
        _COMPOSED.update(values("policy=static_max", "rps=50", "duration_s=3"))
    return _COMPOSED | {"policy": _COMPOSED["policy"] | {"name": "mine", case.part: case.config}}


def test_in_a_sweep_it_fails_its_own_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = ("routes_too_far", "router_raises")
    for name in bad:
        (tmp_path / "router").mkdir(exist_ok=True)
        (tmp_path / "router" / f"{name}.yaml").write_text(f"_target_: {name}.Mine\n")
    monkeypatch.chdir(tmp_path)
    choice = f"router@policy.prefill_router=round_robin,{','.join(bad)}"
    words = ["--config-dir", ".", "-m", "policy=static_max", choice, "rps=20", "duration_s=1", "hydra.sweep.dir=runs"]
    monkeypatch.setattr(sys, "argv", ["voltana-sim", *words])
    with pytest.raises(SystemExit) as stop:
        voltana.sim.run.commands.simulate()
    assert stop.value.code == 2
    err = capfd.readouterr().err
    assert [(tmp_path / "runs" / str(number) / SUMMARY).exists() for number in range(3)] == [True, False, False]
    for number, name in enumerate(bad, 1):
        label = (
            f"router@policy.prefill_router={name}: run runs/{number}: policy static_max: prefill_router ({name}.Mine) "
        )
        assert re.search(rf"^failed: {re.escape(label)}.*\(runs/{number}/error.log\)$", err, flags=re.MULTILINE), err
    assert "in route" in (tmp_path / "runs" / "2" / "error.log").read_text()
    assert err.splitlines()[-1].endswith("(2 of 3 runs failed)")

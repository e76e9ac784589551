"""voltana-check: every policy we ship keeps its promises, and every kind of promise that is broken is found."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import voltana.sim.studies.check.command
from voltana import conf
from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.studies.check.config import CheckConfig
from voltana.sim.studies.check.histories import World, record_worlds
from voltana.sim.studies.check.policy import check_policy

pytestmark = pytest.mark.slow

POLICIES = sorted(file.stem for file in (Path(conf.__file__).parent / "policy").glob("*.yaml"))
CASES = Path(__file__).parents[2] / "cases" / "promises"
SMALL = {"requests": 40, "questions": 200, "decision_us": 20_000}
Values = Callable[..., dict[str, Any]]


class Case(NamedTuple):
    """A module with a class `Mine`, the promise that it breaks, and what is said of it, as its first lines tell."""

    name: str
    part: str
    broken: str
    says: list[str]
    above: str


def read(path: Path) -> Case:
    told = dict(re.findall(r"^# (\w+): (.*)$", path.read_text(), flags=re.MULTILINE))
    part = told.get("part", "decode_controller")
    return Case(path.stem, part, told["broken"], told["says"].split("|"), told.get("above", ""))


ALL = [read(path) for path in sorted(CASES.glob("*.py"))]


def assert_says(case: Case, text: str) -> None:
    assert re.search(".*".join(map(re.escape, case.says)), text), text


@pytest.fixture(scope="module", name="plain")
def _plain(values: Values) -> dict[str, Any]:
    return values("policy=static_max", "rps=60") | {"check": SMALL}


@pytest.fixture(scope="module", name="worlds")
def _worlds(plain: dict[str, Any]) -> list[World]:
    """What all policies are shown."""
    return list(record_worlds({key: value for key, value in plain.items() if key != "check"}, SMALL["requests"]))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_we_ship_keeps_its_promises(policy: str, values: Values, worlds: list[World]) -> None:
    findings = check_policy(values(f"policy={policy}", "rps=60") | {"check": SMALL}, worlds)
    assert [finding for finding in findings if finding.passed is False] == []
    assert len(findings) == 22
    checked = {(finding.part, finding.check) for finding in findings if finding.passed}
    assert ("all", "both engines agree") in checked and ("decode_controller", "answers") in checked


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_broken_promise_is_found(
    case: Case, plain: dict[str, Any], worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CASES)
    policy = plain["policy"] | {"name": "mine", case.part: {"_target_": f"{case.name}.Mine"}}
    findings = check_policy(plain | {"policy": policy}, worlds)
    failed = [finding for finding in findings if finding.passed is False]
    whose = "all" if case.broken == "no mutation" else case.part
    assert (failed[0].part, failed[0].check) == (whose, case.broken)
    assert_says(case, failed[0].detail)
    assert case.above in failed[0].traceback and bool(case.above) == bool(failed[0].traceback)


def test_an_answer_that_takes_too_long_is_found(plain: dict[str, Any], worlds: list[World]) -> None:
    findings = check_policy(plain | {"check": SMALL | {"decision_us": 0.01}}, worlds)
    slow = [finding for finding in findings if finding.passed is False]
    assert {finding.check for finding in slow} == {"time"} and len(slow) == 4
    assert "allowed: up to 0.01 us (check.decision_us)" in slow[0].detail


@pytest.mark.parametrize("case", ["fails_at_last", "counts_on_two", ""])
def test_the_command_prints_a_table_and_names_the_first_broken_promise(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(CASES)
    monkeypatch.chdir(tmp_path)
    words = ["policy=static_max", "check.requests=40", "check.decision_us=20000"]
    chosen = next((each for each in ALL if each.name == case), None)
    if chosen is not None:
        group = "router" if "router" in chosen.part else "frequency"
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"_target_: {case}.Mine\n")
        words = ["--config-dir", ".", *words, f"{group}@policy.{chosen.part}=mine", "policy.name='[red]mine'"]
    monkeypatch.setattr(sys, "argv", ["voltana-check", *words])
    status: object = 0
    try:
        voltana.sim.studies.check.command.main()
    except SystemExit as stop:
        status = stop.code
    out, err = capfd.readouterr()
    assert "decode_controller" in out, err
    assert "both engines agree" in out
    assert not [path for path in tmp_path.iterdir() if path.name not in ("frequency", "router")]
    assert (status, bool(err)) == ((0, False) if chosen is None else (2, True))
    if chosen is not None:
        *above, line = err.splitlines()
        assert line.startswith("voltana-check: error: policy [red]mine: ") and chosen.part in line
        assert_says(chosen, line)
        assert bool(above) == bool(chosen.above)
        assert out.count("BROKEN") == 1


def test_its_settings_are_checked(plain: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"check\.requests: found 0, allowed: greater than or equal to 1"):
        parse(CheckConfig, plain | {"check": SMALL | {"requests": 0}})

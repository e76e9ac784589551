"""Every policy looks like itself, whatever else is drawn."""

from collections import Counter
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from voltana import conf
from voltana.analysis.style import POLICIES, line

SHIPPED = [yaml.safe_load(path.read_text())["name"] for path in Path(conf.__path__[0]).glob("policy/**/*.yaml")]


def test_every_shipped_policy_has_a_look_of_its_own() -> None:
    assert set(SHIPPED) == set(POLICIES)
    assert [look for look, count in Counter(map(line, SHIPPED)).items() if count > 1] == []


@given(st.text())
def test_any_other_policy_has_a_look_that_no_shipped_one_has(name: str) -> None:
    if name not in POLICIES:
        assert line(name) == line(name)
        assert line(name).marker not in {look.marker for look in POLICIES.values()}


def test_a_look_is_told_by_the_name_in_every_version() -> None:
    assert line("by_batch") == ("#347E1B", (3, 1, 180.0))


def test_names_of_a_kind_look_different() -> None:
    looks = {line(f"mine margin={margin}") for margin in range(30)}
    assert len(looks) > 25

"""What is searched, read from a command line and put into a policy."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.tuning.space import Choice, Range, at, read_space, refuse_unknown

POLICY = {"name": "p", "decode_controller": {"_target_": "a.B", "margin": 0.1, "levels": [1]}, "router": {"k": 2}}


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    asked = {"a": "0..0.5", "b": "1..8", "c": "0.01..1e1 log", "d": [[1, "max"], None, True], "e": "-2..-1"}
    expected = {
        "a": Range(0.0, 0.5, False, False),
        "b": Range(1.0, 8.0, True, False),
        "c": Range(0.01, 10.0, False, True),
        "d": Choice(('[1, "max"]', "null", "true")),
        "e": Range(-2.0, -1.0, True, False),
    }
    assert read_space(asked) == expected
    path = tmp_path / "space.yaml"
    path.write_text('a: 0..0.5\nb: 1..8\nc: 0.01..1e1 log\nd: [[1, max], null, true]\ne: "-2..-1"\n')
    assert read_space(str(path)) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "space: found {}, allowed: a mapping"),
        ([1], "space: found [1], allowed: a mapping"),
        ("nowhere.yaml", "space: found 'nowhere.yaml', allowed: a mapping, or a YAML file"),
        ({"a": "1..0"}, "space: a: found '1..0', allowed: from less to more"),
        ({"a": "0..1 log"}, "space: a: found '0..1 log', allowed: from less to more, above 0"),
        ({"a": 3}, "space: a: found 3, allowed: a range such as 0..0.5"),
        ({"a": [1]}, "space: a: found [1], allowed: a range"),
        ({"a": [1, 1, 2]}, "space: a: found [1, 1, 2], allowed: a range"),
        ({"a:0..1": None}, "space: a:0..1: found no value, which stands after a colon and a space"),
    ],
)
def test_what_cannot_be_read_is_named(asked: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_space(asked)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("key", ["decode_controller._target_", "name", "decode_controller", "margin"])
def test_only_parameters_of_the_policy_are_searched(key: str) -> None:
    with pytest.raises(
        UserError, match=r"allowed: keys of the policy: decode_controller.levels, decode_controller.mar"
    ):
        refuse_unknown(read_space({key: "0..1"}), POLICY)
    refuse_unknown(read_space({"router.k": "1..4"}), POLICY)


@given(st.floats(0.0, 1.0), st.sampled_from([[1], [1, 2], "max"]))
def test_a_point_changes_its_parameters_alone(margin: float, levels: Any) -> None:
    space = read_space({"decode_controller.margin": "0..1.0", "decode_controller.levels": [[1], [1, 2], "max"]})
    drawn = next(text for text in space["decode_controller.levels"].texts if Choice((text,)).value(text) == levels)  # type: ignore[union-attr]
    changed = at(POLICY, space, {"decode_controller.margin": margin, "decode_controller.levels": drawn})
    assert changed == {**POLICY, "decode_controller": {"_target_": "a.B", "margin": margin, "levels": levels}}
    assert POLICY["decode_controller"] == {"_target_": "a.B", "margin": 0.1, "levels": [1]}

"""What searching sweepers are told."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from voltana.app.objective import objective_of, objectives
from voltana.errors import UserError

SUMMARY: dict[str, Any] = {
    "energy_j": {"total": 12.5},
    "joint_attainment": 1,
    "interrupted": False,
    "goodput_per_s": None,
}


@pytest.mark.parametrize(
    ("given", "keys"),
    [(None, ()), ("energy_j.total", ("energy_j.total",)), (["a", "b"], ("a", "b")), ([], ())],
)
def test_an_objective_is_a_key_or_several(given: Any, keys: tuple[str, ...]) -> None:
    assert objective_of(OmegaConf.create({"objective": given})) == keys


@pytest.mark.parametrize("given", [3, [1], {"a": 1}, "", [["a"]]])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"objective: found .*, allowed: null, a key"):
        objective_of(OmegaConf.create({"objective": given}))


def test_one_key_gives_a_number_and_several_a_tuple() -> None:
    assert objectives(SUMMARY, ()) is None
    assert objectives(SUMMARY, ("energy_j.total",)) == 12.5
    assert objectives(SUMMARY, ("joint_attainment", "energy_j.total")) == (1.0, 12.5)


@pytest.mark.parametrize("key", ["energy", "energy_j", "interrupted", "goodput_per_s"])
def test_what_is_no_number_of_the_run_is_refused_with_those_there_are(key: str) -> None:
    with pytest.raises(UserError, match=f"objective: found '{key}', allowed: energy_j.total, joint_attainment"):
        objectives(SUMMARY, (key,))

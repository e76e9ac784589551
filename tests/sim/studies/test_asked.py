"""The words of a study's command line, with folders of configuration files of one's own."""

from pathlib import Path

import pytest

from voltana.errors import UserError
from voltana.sim.studies.asked import combinations, composed, own_and_overrides

MINE = """
defaults:
  - /policy/voltana@_here_
  - _self_
name: mine
decode_controller: {{margin: {margin}}}
"""


def test_policies_of_ones_own_are_found_and_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    preset = tmp_path / "policy" / "mine.yaml"
    words = ["--config-dir", str(tmp_path), "policy=mine,voltana", "seeds=3", "rps=5"]
    own, overrides = own_and_overrides(words, ["seeds"])
    assert own == {"seeds": 3}
    found = combinations(overrides)
    assert list(found) == ["policy=mine", "policy=voltana"]
    for margin in (0.125, 0.375):
        preset.write_text(MINE.format(margin=margin))
        values = composed(found["policy=mine"])
        assert (values["policy"]["name"], values["rps"]) == ("mine", 5)
        assert values["policy"]["decode_controller"]["margin"] == margin
    assert composed(found["policy=voltana"])["policy"]["name"] == "voltana"


@pytest.mark.parametrize("words", [["--config-dir", "nowhere"], ["--config-dir=nowhere"], ["-cd", "nowhere"]])
def test_a_folder_that_is_not_there_is_told(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--config-dir: found no such folder"):
        own_and_overrides([*words, "rps=5"], [])

"""`cluster=4p12d`: any counts of instances."""

import pytest
from hydra.errors import MissingConfigException

from voltana.sim.run.compose import compose_sim


@pytest.mark.parametrize(("word", "counts"), [("2p2d", (2, 2)), ("1p3d", (1, 3)), ("4p12d", (4, 12))])
def test_counts_are_the_words(word: str, counts: tuple[int, int]) -> None:
    cluster = compose_sim(f"cluster={word}")["cluster"]
    assert (cluster["prefill_instances"], cluster["decode_instances"]) == counts
    assert cluster["name"] == word
    others = ("gpus_per_host", "link")
    assert {key: cluster[key] for key in others} == {key: compose_sim()["cluster"][key] for key in others}


@pytest.mark.parametrize("word", ["0p2d", "2p0d", "02p2d", "p2d", "2p2", "2d2p", "-1p2d", "12345p1d"])
def test_other_words_are_no_option(word: str) -> None:
    with pytest.raises(MissingConfigException):
        compose_sim(f"cluster={word}")

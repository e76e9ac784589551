"""Answers that are allowed pass as they are; tests/sim/run/test_own_policy.py has those that are not."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from voltana.errors import PolicyError
from voltana.policies.asked import AskedController, AskedRouter, Who
from voltana.state import Decision, InstanceLoad, LoadSnapshot, RequestInfo

WHO = Who("mine", "decode_controller", "my.Policy", "decode-0")
LOAD = LoadSnapshot(1.5, 1410, 3, 900, 0, 0, 0.0, 0.0, 3, 900)
CANDIDATES = (InstanceLoad(1410, 1, 10), InstanceLoad(1410, 2, 20))


class Answering:
    """Gives one answer after another."""

    reads_load = False

    def __init__(self, *answers: object) -> None:
        self._answers = iter(answers)

    def decide(self, load: LoadSnapshot) -> Any:
        return next(self._answers)

    def route(self, request: RequestInfo, candidates: Any) -> Any:
        return next(self._answers)


def controller(*answers: object) -> AskedController:
    return AskedController(WHO, Answering(*answers), (705, 1005, 1410), lambda: (100.0, 400.0))


ALLOWED = [Decision(705), Decision(1410, 0.1, math.inf, 100.0), Decision(1410, 0.1, 5.0, 400.0), Decision(1005, 2.0)]


def test_what_is_allowed_passes() -> None:
    asked = controller(*ALLOWED, *ALLOWED)
    assert [asked.decide(LOAD) for _ in range(8)] == [*ALLOWED, *ALLOWED]
    assert not asked.reads_load and not asked.reads_power


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    answer = controller(Decision(np.int64(1005), np.float32(2), np.int64(7), np.float64(200.5))).decide(LOAD)
    assert answer == Decision(1005, 2.0, 7.0, 200.5)
    assert [type(value) for value in answer] == [int, float, float, float]
    router = AskedRouter(WHO, Answering(np.int64(1)))
    assert type(router.route(RequestInfo(0, 0.0, 5), CANDIDATES)) is int


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("wrong", [math.nan, "1410", True, [1410], -1, 1 + 0j])
def test_one_wrong_part_after_right_ones_is_refused(place: int, wrong: object) -> None:
    parts: list[Any] = [1410, 0.1, 5.0, 200.0]
    asked = controller(Decision(*parts), Decision(*parts[:place], wrong, *parts[place + 1 :]), Decision(*parts))
    asked.decide(LOAD)
    with pytest.raises(PolicyError) as caught:
        asked.decide(LOAD)
    assert str(caught.value).startswith("policy mine: decode_controller (my.Policy) of decode-0 at 1.500 s answered ")
    assert f"{Decision._fields[place]}={wrong!r}, allowed: " in str(caught.value)
    assert asked.decide(LOAD) == Decision(*parts)


@pytest.mark.parametrize("wrong", [None, True, 2, -1, 0.0, "0", [0]])
def test_what_is_no_candidate_is_refused(wrong: object) -> None:
    with pytest.raises(PolicyError, match=r"for request 4 that arrived at 2.000 s answered .* 0 to 1$"):
        AskedRouter(WHO, Answering(wrong)).route(RequestInfo(4, 2.0, 5), CANDIDATES)


def test_an_answer_that_cannot_be_shown_is_named_all_the_same() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    with pytest.raises(PolicyError, match="answered a Odd whose repr raised ValueError, allowed"):
        controller(Odd()).decide(LOAD)
    with pytest.raises(PolicyError) as caught:
        controller("x\n" * 10_000).decide(LOAD)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_it_survives_the_way_out_of_a_worker() -> None:
    with pytest.raises(PolicyError) as caught:
        controller().decide(LOAD)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.traceback_text) == (PolicyError, str(caught.value), caught.value.traceback_text)
    assert "StopIteration" in copy.traceback_text and "in decide\n    return next(" in copy.traceback_text

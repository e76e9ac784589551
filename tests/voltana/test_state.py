"""What crosses the border to a policy is immutable and holds numbers that a live system can know."""

from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from voltana.state import Decision, InstanceLoad, LoadSnapshot, RequestInfo, RequestView, Slo

MESSAGES = [LoadSnapshot, InstanceLoad, RequestInfo, RequestView, Decision, Slo]


def numbers(message: Any) -> list[object]:
    return list(range(len(message._fields)))


@pytest.mark.parametrize("message", MESSAGES)
def test_immutable(message: Any) -> None:
    made = message(*numbers(message))
    for name in message._fields:
        with pytest.raises(AttributeError):
            setattr(made, name, 1)
    with pytest.raises((TypeError, AttributeError)):
        made.truth = 1
    assert made == message(*numbers(message))
    assert len({made, message(*numbers(message))}) == 1


@pytest.mark.parametrize("message", MESSAGES)
def test_holds_nothing_but_numbers(message: Any) -> None:
    for hint in get_type_hints(message).values():
        assert {*(get_args(hint) or (hint,))} <= {int, float, NoneType, RequestView, Ellipsis}


@pytest.mark.parametrize("message", MESSAGES)
def test_knows_nothing_of_the_future(message: Any) -> None:
    names = set(message._fields)
    assert not {name for name in names if any(word in name for word in ("output", "finish", "remaining", "true"))}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (RequestInfo, {"request_id", "arrival_s", "prompt_tokens"}),
        (RequestView, {"age_s", "prompt_tokens", "produced_tokens", "expected_tokens"}),
        (InstanceLoad, {"clock_mhz", "requests", "tokens"}),
        (Decision, {"clock_mhz", "ask_when_idle_s", "holds_below_tokens", "power_cap_w"}),
    ],
)
def test_a_new_field_is_a_decision(message: Any, expected: set[str]) -> None:
    assert set(message._fields) == expected

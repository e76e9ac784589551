"""A section says in one line what is wrong with it, and does not change."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, ValidationError

from voltana.errors import UserError
from voltana.section import Count, Flag, Positive, Section, Span, between, parse


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"found {value // 2} pairs, allowed: an odd number")
    return value


class Inner(Section):
    share: Annotated[float, between(0, 1)]
    ends: Span


class Outer(Section):
    inner: Inner
    tokens: Count | Literal["auto"]
    rate: Positive
    on: Flag
    odd: Annotated[Count, AfterValidator(_odd)] = 1


GOOD: dict[str, Any] = {"inner": {"share": 1, "ends": [2, 2]}, "tokens": "auto", "rate": 2, "on": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rat": 3}, "x.rat: unknown key; allowed: inner, tokens, rate, on, odd"),
        ({"inner": {"share": 1, "ends": [1, 2], "more": 1}}, "x.inner.more: unknown key; allowed: share, ends"),
        ({"inner": {"share": 1}}, "x.inner.ends: missing; it has no default"),
        ({"inner": 3}, "x.inner: found 3, allowed: a section with share, ends"),
        (
            {"inner": {"share": 1, "ends": [3, 2]}},
            "x.inner.ends: found [3, 2], allowed: a lower and an upper whole number",
        ),
        ({"inner": {"share": float("nan"), "ends": [1, 2]}}, "x.inner.share: found nan, allowed: a finite number"),
        ({"tokens": 0}, "x.tokens: found 0, allowed: greater than or equal to 1 or 'auto'"),
        ({"rate": True}, "x.rate: found True, allowed: a valid number"),
        ({"rate": "2"}, "x.rate: found '2', allowed: a valid number"),
        ({"on": 1}, "x.on: found 1, allowed: a valid boolean"),
        ({"odd": 4}, "x.odd: found 2 pairs, allowed: an odd number"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(Outer, GOOD | change, "x")
    assert str(caught.value) == says


def test_a_changed_copy_is_checked_too() -> None:
    section = parse(Outer, GOOD)
    assert section.but(rate=3).rate == 3 and section.rate == 2
    with pytest.raises(ValidationError):
        section.but(rate=0)
    with pytest.raises(ValidationError):
        section.rate = 3

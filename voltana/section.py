"""Sections of a configuration: each a class that says what its keys are and may be, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from voltana.errors import UserError

Count = Annotated[int, Field(ge=1, strict=True)]
"""A whole number from 1: requests, tokens, GPUs."""
WholeNumber = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Seconds = NonNegative
Flag = Annotated[bool, Field(strict=True)]


def rising(ends: tuple[int, int]) -> tuple[int, int]:
    """A lower and an upper bound, which may be equal.

    Raises:
        ValueError: the second is the lower one.
    """
    if ends[0] > ends[1]:
        raise ValueError("a lower and an upper whole number")
    return ends


Span = Annotated[tuple[Count, Count], AfterValidator(rising)]


def between(low: float, high: float) -> Any:
    """What bounds a number to [low, high]: ``Annotated[float, between(0, 1)]``."""
    return Field(ge=low, le=high, strict=True, allow_inf_nan=False)


class Section(BaseModel):
    """A section: unknown keys are errors, what was checked does not change.

    A validator raises a `ValueError` that says what is allowed, or all of "found ..., allowed: ...".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def but(self, **changes: Any) -> Self:
        """The same with some values changed; the result is checked again."""
        return type(self)(**{**vars(self), **changes})


Kind = TypeVar("Kind", bound=Section)


def parse(kind: type[Kind], values: Mapping[str, Any], key: str = "") -> Kind:
    """Check a section.

    Args:
        kind: its class.
        values: its keys and values, resolved.
        key: where it stands in the configuration, for messages.

    Raises:
        UserError: names the first bad key, what was found and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(kind, key, error)) from error


def _explain(kind: type[Section], key: str, error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    first, names = errors[0], _names(errors[0]["loc"])
    place = ".".join([key, *names] if key else names)
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key; allowed: {', '.join(_keys(kind, names[:-1]))}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{place}: found {first['input']!r}, allowed: {first['loc'][-1] + 1} values"
    if first["type"] == "missing":
        return f"{place}: missing; it has no default"
    if first["type"] == "model_type":
        return f"{place}: found {first['input']!r}, allowed: a section with {', '.join(_keys(kind, names))}"
    allowed = [each["msg"].removeprefix("Input should be ").removeprefix("Value error, ") for each in errors]
    if allowed[0].startswith("found "):
        return f"{place}: {allowed[0]}"
    either = [text for text, each in zip(allowed, errors, strict=True) if _names(each["loc"]) == names]
    return f"{place}: found {first['input']!r}, allowed: {' or '.join(dict.fromkeys(either))}"


def _names(loc: tuple[int | str, ...]) -> list[str]:
    """The keys on the way to a value; without places in lists and what pydantic calls the types of a union."""
    return [part for part in loc if isinstance(part, str) and part.isidentifier()]


def _keys(kind: Any, names: list[str]) -> list[str]:
    """The keys of the section that is found by going down these names."""
    for name in names:
        kind = kind.model_fields[name].annotation
    return [field.alias or name for name, field in kind.model_fields.items()]

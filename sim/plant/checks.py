"""Checks shared by the three specifications: a complaint is one line with key, what was found, what is allowed."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from voltana.errors import UserError

Spec = TypeVar("Spec")


def build(spec: type[Spec], section: str, mapping: Mapping[str, Any]) -> Spec:
    """Build a specification from a YAML mapping; an unknown or missing key is a UserError."""
    known = {field.name: field for field in fields(spec)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            raise UserError(f"{section}.{key}: unknown key; allowed: {', '.join(known)}")
    for name, field in known.items():
        if name not in mapping and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{section}.{name}: missing; it has no default")
    return spec(**mapping)


def number(key: str, found: object, low: float, high: float = float("inf")) -> None:
    """Raise unless `found` is a number in [low, high]."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not low <= found <= high:
        raise UserError(f"{key}: found {found!r}; allowed: a number from {low:g} to {high:g}")


def positive(key: str, found: object) -> None:
    """Raise unless `found` is a finite number above zero."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise UserError(f"{key}: found {found!r}; allowed: a number above 0")


def count(key: str, found: object, low: int = 1) -> None:
    """Raise unless `found` is a whole number of at least `low`."""
    if isinstance(found, bool) or not isinstance(found, int) or found < low:
        raise UserError(f"{key}: found {found!r}; allowed: a whole number from {low}")

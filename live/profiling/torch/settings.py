"""What `conf/profile/torch.yaml` sets, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from voltana.errors import UserError
from voltana.sim.plant import checks

ATTENTION = ("flash", "cudnn", "math")
"""Kernels behind torch's `scaled_dot_product_attention` that know grouped queries."""
ALL_LAYERS = "all"


@dataclass(frozen=True)
class PrefillCells:
    """`profile.prefill`."""

    tokens: tuple[int, int]
    """Range of batched prompt tokens."""
    prompt_tokens: int
    samples: int
    """Cells before the rest of the time goes where the fit is worst."""

    def __post_init__(self) -> None:
        span("profile.prefill.tokens", self.tokens)
        checks.count("profile.prefill.prompt_tokens", self.prompt_tokens)
        checks.count("profile.prefill.samples", self.samples, 4)


@dataclass(frozen=True)
class DecodeCells:
    """`profile.decode`."""

    max_batch: int
    tokens_per_request: tuple[int, int]
    samples: int
    """Cells per batch bin of EcoPred, before the rest of the time goes where the fit is worst."""

    def __post_init__(self) -> None:
        checks.count("profile.decode.max_batch", self.max_batch)
        span("profile.decode.tokens_per_request", self.tokens_per_request)
        checks.count("profile.decode.samples", self.samples, 5)


@dataclass(frozen=True)
class Settings:
    """`profile`, as `conf/profile/torch.yaml` explains it."""

    source: str
    device: str
    clocks_mhz: tuple[int, ...]
    prefill: PrefillCells
    decode: DecodeCells
    attention: str
    layers: str | tuple[int, int]
    window_s: float
    windows: tuple[int, int]
    tolerance: float
    budget_s: float
    seed: int

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from the `profile` section of a configuration.

        Raises:
            UserError: names the first bad key, what was found and what is allowed.
        """
        return checks.build(cls, "profile", with_cells(mapping, PrefillCells, DecodeCells))

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or self.device.partition(":")[0] not in ("cuda", "cpu"):
            raise UserError(f"profile.device: found {self.device!r}, allowed: cuda, cuda:1, ..., cpu")
        check_clocks(self.clocks_mhz)
        if self.attention not in ATTENTION:
            raise UserError(f"profile.attention: found {self.attention!r}, allowed: {', '.join(ATTENTION)}")
        if self.layers != ALL_LAYERS:
            span("profile.layers", self.layers, f"{ALL_LAYERS}, or two different numbers of layers, rising")
            if self.layers[0] == self.layers[1]:
                raise UserError(f"profile.layers: found {list(self.layers)}, allowed: two different numbers, rising")
        checks.number("profile.window_s", self.window_s, 0.001, 60.0)
        span("profile.windows", self.windows)
        checks.number("profile.windows", self.windows[0], 2, 1000)
        checks.number("profile.tolerance", self.tolerance, 1e-4, 1.0)
        checks.number("profile.budget_s", self.budget_s, 0.0)
        checks.count("profile.seed", self.seed, 0)


def with_cells(mapping: Mapping[str, Any], prefill: type, decode: type) -> dict[str, Any]:
    """The section `profile` with its sections `prefill` and `decode` built.

    Raises:
        UserError: one of them is missing or wrong.
    """
    values = {key: value for key, value in mapping.items() if key != "_target_"}
    for key, kind in (("prefill", prefill), ("decode", decode)):
        section = values.get(key)
        if not isinstance(section, Mapping):
            raise UserError(f"profile.{key}: found {section!r}, allowed: a section with {names_of(kind)}")
        values[key] = checks.build(kind, f"profile.{key}", section)
    return values


def check_clocks(found: object) -> None:
    """Raise unless `found` is a list of clocks."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise UserError(f"profile.clocks_mhz: found {found!r}, allowed: a list of clocks, or []")
    for clock in found:
        checks.count("profile.clocks_mhz", clock)


def span(key: str, found: object, allowed: str = "a lower and an upper whole number from 1") -> None:
    """Raise unless `found` is two whole numbers from 1, the second no lower."""
    good = isinstance(found, Sequence) and len(found) == 2 and all(type(value) is int for value in found)
    if not good or not 1 <= found[0] <= found[1]:  # type: ignore[index]
        shown = list(found) if isinstance(found, tuple) else found
        raise UserError(f"{key}: found {shown!r}, allowed: {allowed}")


def names_of(kind: type) -> str:
    """The keys of a section."""
    return ", ".join(field.name for field in fields(kind))

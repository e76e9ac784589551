"""What `conf/profile/sglang.yaml` sets, checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from voltana.app.config import DecodeProfile, Profile
from voltana.section import Count, NonNegative, WholeNumber, between, rising


def _window(ends_s: tuple[float, float]) -> tuple[float, float]:
    low_s, high_s = ends_s
    if not max(low_s, 0.01) <= high_s:
        raise ValueError(f"found {high_s!r}, allowed: a lower and an upper bound, s")
    return ends_s


class ServedDecode(DecodeProfile):
    """`profile.decode`."""

    output_tokens: Annotated[int, between(2, 1 << 31)]
    """A request ends after so many, if the measurement has not before."""
    reserve_tokens: WholeNumber
    """KV room that the server keeps for every request beside its context."""


class ServedSettings(Profile):
    """`profile`, as `conf/profile/sglang.yaml` explains it."""

    clocks_mhz: tuple[Count, ...]
    decode: ServedDecode
    iterations: Annotated[tuple[Annotated[int, between(3, 1 << 31)], Count], AfterValidator(rising)]
    window_s: Annotated[
        tuple[Annotated[float, between(0, 60)], Annotated[float, between(0, 600)]], AfterValidator(_window)
    ]
    tolerance: Annotated[float, between(1e-4, 1)]
    good_misfit: Annotated[float, between(0, 1)]
    budget_s: NonNegative
    timeout_s: Annotated[float, between(1, 3600)]

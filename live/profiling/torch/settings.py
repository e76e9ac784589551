"""What `conf/profile/torch.yaml` sets, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from voltana.app.config import Profile
from voltana.section import Count, NonNegative, between, rising

Attention = Literal["flash", "cudnn", "math"]
"""Kernels behind torch's `scaled_dot_product_attention` that know grouped queries."""


def _device(name: str) -> str:
    if name.partition(":")[0] not in ("cuda", "cpu"):
        raise ValueError("cuda, cuda:1, ..., cpu")
    return name


def _different(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] >= ends[1]:
        raise ValueError("two different numbers of layers, rising")
    return ends


class Settings(Profile):
    """`profile`, as `conf/profile/torch.yaml` explains it."""

    device: Annotated[str, AfterValidator(_device)]
    clocks_mhz: tuple[Count, ...]
    attention: Attention
    layers: Literal["all"] | Annotated[tuple[Count, Count], AfterValidator(_different)]
    window_s: Annotated[float, between(0.001, 60)]
    windows: Annotated[tuple[Annotated[int, between(2, 1000)], Count], AfterValidator(rising)]
    tolerance: Annotated[float, between(1e-4, 1)]
    budget_s: NonNegative

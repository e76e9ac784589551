"""What `conf/profile/sglang.yaml` sets, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from voltana.errors import UserError
from voltana.live.profiling.torch.settings import DecodeCells, PrefillCells, check_clocks, span, with_cells
from voltana.sim.plant import checks


@dataclass(frozen=True)
class ServedDecodeCells(DecodeCells):
    """`profile.decode`."""

    output_tokens: int = 2000
    """A request ends after so many, if the measurement has not before."""
    reserve_tokens: int = 512
    """KV room that the server keeps for every request beside its context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("profile.decode.output_tokens", self.output_tokens, 2)
        checks.count("profile.decode.reserve_tokens", self.reserve_tokens, 0)


@dataclass(frozen=True)
class ServedSettings:
    """`profile`, as `conf/profile/sglang.yaml` explains it."""

    source: str
    clocks_mhz: tuple[int, ...]
    prefill: PrefillCells
    decode: ServedDecodeCells
    iterations: tuple[int, int]
    window_s: tuple[float, float]
    tolerance: float
    good_misfit: float
    budget_s: float
    timeout_s: float
    seed: int

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from the `profile` section of a configuration.

        Raises:
            UserError: names the first bad key, what was found and what is allowed.
        """
        return checks.build(cls, "profile", with_cells(mapping, PrefillCells, ServedDecodeCells))

    def __post_init__(self) -> None:
        check_clocks(self.clocks_mhz)
        span("profile.iterations", self.iterations)
        checks.count("profile.iterations", self.iterations[0], 3)
        window = self.window_s
        if not isinstance(window, Sequence) or len(window) != 2:
            raise UserError(f"profile.window_s: found {window!r}, allowed: a lower and an upper bound, s")
        checks.number("profile.window_s", window[0], 0.0, 60.0)
        checks.number("profile.window_s", window[1], max(window[0], 0.01), 600.0)
        checks.number("profile.tolerance", self.tolerance, 1e-4, 1.0)
        checks.number("profile.good_misfit", self.good_misfit, 0.0, 1.0)
        checks.number("profile.budget_s", self.budget_s, 0.0)
        checks.number("profile.timeout_s", self.timeout_s, 1.0, 3600.0)
        checks.count("profile.seed", self.seed, 0)

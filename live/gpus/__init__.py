"""The GPUs of instances: what is commanded, what is metered.

owned.py       commanded and read through an owner of clocks: real, simulated, or only observed
several.py     those of several hosts, each with an owner
host_clock.py  times that another host tells
emulated.py    those of emulated servers, which know their own energy to the joule
energy.py      energy over time, and rows of `instances.parquet`
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from voltana.live.servers import Endpoint
from voltana.live.telemetry.message import Telemetry
from voltana.record import InstanceRow

READ_EVERY_S = 0.1
"""As often as the sensors of A100s and H100s show a new value."""
ANSWER_S = 10.0
"""A clock that is to be waited for is in force by then, or will not be."""


class Setpoint(NamedTuple):
    """What was commanded last."""

    clock_mhz: int = 0
    """0: nothing yet."""
    power_cap_w: float | None = None
    """Of every GPU; None: its own."""


class Meter(NamedTuple):
    """All GPUs of an instance at one moment."""

    time_s: float
    """Monotonic clock."""
    energy_j: float | None
    """A counter: only differences mean something. None: not told."""
    clock_mhz: int | None


class Clocks(Protocol):
    """What drives clocks. Nothing here waits: a command is taken, and brought into force."""

    @abstractmethod
    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Lock the SM clock of all GPUs of an instance."""
        ...

    @abstractmethod
    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """Set the power limit of every GPU of an instance; None: the GPU's own."""
        ...

    @abstractmethod
    def setpoint(self, instance: str) -> Setpoint:
        """What was commanded last."""
        ...


class Gpus(Clocks, ABC):
    """The GPUs of all instances."""

    drives: bool = True
    """Whether clocks are to be commanded at all."""
    settable: bool = True
    """Whether clocks can be."""
    often: bool = False
    """Whether somebody wants each new value of the power sensors; set before `begin`."""
    models: list[str]
    """What they are, once opened."""
    clocks_mhz: Sequence[int] = ()
    """What all of them support, ascending; empty where nothing says."""
    power_limits_w: tuple[float, float] | None = None
    """Lowest and highest cap; None where nothing says."""
    uncapped: str = ""
    """A GPU whose power cannot be capped, in words, where caps would be commanded."""
    power_meters: Sequence[str] = ()
    """What the power is read from, by `GpuInfo.power_meter`."""

    async def open(self) -> None:
        """Take them over; the servers need not run yet.

        Raises:
            UserError: that cannot be.
        """

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """The servers run, these.

        Raises:
            UserError: one does not answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give them back as they were found; safe to call more than once."""

    # One after the other, for a profile

    @abstractmethod
    async def apply(self, instance: str, clock_mhz: int) -> None:
        """Set the clock of an instance; it is in force when this returns.

        Raises:
            UserError: it cannot be set, or is not obeyed.
        """

    @abstractmethod
    async def read(self, instance: str) -> Meter:
        """Read the meters.

        Raises:
            UserError: they cannot be read.
        """

    # All the time, for a run

    def heard(self, telemetry: Telemetry) -> None:
        """Telemetry came."""

    @abstractmethod
    def ended(self, instance: str) -> None:
        """The server of an instance is gone."""

    @abstractmethod
    def begin(self, start_s: float) -> None:
        """The run begins at this instant of the monotonic clock, which need not have come; meters are read from now."""

    @abstractmethod
    async def settle(self) -> None:
        """Read all meters a last time."""

    @abstractmethod
    def power_w(self, instance: str) -> float | None:
        """The last reading of an instance's power."""

    @abstractmethod
    def clock_mhz(self, instance: str) -> int | None:
        """The clock in force at the last reading, by the GPUs' own account; None where they do not tell."""

    @property
    @abstractmethod
    def known_s(self) -> float:
        """Second of the run up to which all has been told; minus infinity before the first reading."""

    @abstractmethod
    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """What an instance did in a stretch of the run, with the mean power of each row; None where it is not known.

        Stretches are asked for in order.
        """

    def lags_ms(self) -> dict[str, dict[str, float | None]]:
        """How far servers that emulate GPUs fell behind the clock on the wall, by instance; empty for others."""
        return {}

    def refused(self) -> dict[str, int]:
        """How often a command was refused, by the words in which it was."""
        return {}

"""Servers under our control: where they are, and what every way of having them offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

Role = Literal["prefill", "decode", "unified"]
"""What a server does; `unified`: both, as SGLang is used without disaggregation."""


class Endpoint(NamedTuple):
    """A server that runs."""

    name: str
    role: Role
    host: str
    port: int
    bootstrap_port: int
    """Of a prefill server; 0 for others."""
    telemetry: str
    """Where it publishes load snapshots, for `voltana.live.telemetry.Subscriber.connect`; empty if it does not."""
    pid: int = 0
    """0: not started here."""
    log: Path | None = None
    owner: str = ""
    """Socket of the owner of its GPUs' clocks, forwarded from another host; empty: that of `control`."""

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return f"http://{self.host}:{self.port}"


class Servers(Protocol):
    """A set of servers that start together and go together.

    Attributes:
        endpoints: the servers by name: prefill-0, prefill-1, ..., decode-0, ...; empty while they do not run.
    """

    endpoints: Mapping[str, Endpoint]

    def of(self, role: Role) -> list[Endpoint]:
        """The servers of a role."""
        ...

    async def start(self) -> None:
        """Start all servers and wait until they are healthy.

        Raises:
            UserError: one did not start, and why; the others are stopped.
        """
        ...

    def kill(self, name: str) -> None:
        """End a server that has been stopped (SIGSTOP) or hangs."""
        ...

    async def stop(self) -> None:
        """Stop all servers and remove their files; safe to call more than once."""
        ...

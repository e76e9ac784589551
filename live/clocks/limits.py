"""What the owner of clocks allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How the owner protects the driver, and itself."""

    changes_per_s: float = 50.0
    """Commands executed per GPU and second, on average; faster ones replace each other."""
    burst: int = 10
    """Commands executed at once after a quiet time."""
    slow_s: float = 0.2
    """A driver call that takes longer is reported."""
    stuck_s: float = 5.0
    """While a driver call takes longer than this, commands and reads are refused."""
    heartbeat_s: float = 3.0
    """A client that is silent for so long is hung up on, and loses the GPUs that it owns."""
    restore_s: float = 10.0
    """Time for the restore at exit."""
    clients: int = 64
    """Once so many are connected, a new one takes the place of one that owns no GPU and has only sent heartbeats for
    longest, and for `heartbeat_s` at least."""
    reads: int = 8
    """Reads of one client that may wait at once."""
    requests_per_s: float = 5000.0
    """Lines taken from one client; faster ones wait in its socket."""

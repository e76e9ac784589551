"""File descriptors: a connection needs one, and the process may have no more than its limit (`ulimit -n`)."""

from __future__ import annotations

import resource
from pathlib import Path

from voltana.errors import UserError
from voltana.live.router.fleet import log
from voltana.live.router.settings import RouterSettings

_SPARE = 64
"""Kept for health checks and whatever else the process opens."""
_PER_REQUEST = 2
"""Connections to instances that a request needs, beside its client's own."""


def fit(settings: RouterSettings) -> RouterSettings:
    """Raise the process' limit as far as the settings need; lower what does not fit below it, and say so.

    Raises:
        UserError: not even one request fits.
    """
    used = _used()
    wanted = used + _SPARE + _PER_REQUEST * settings.max_in_flight + settings.max_connections
    wanted += backlog(wanted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or wanted <= hard:
        if soft != resource.RLIM_INFINITY and wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return settings
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - used - _SPARE - backlog(hard)
    in_flight = min(settings.max_in_flight, room // (2 * _PER_REQUEST))
    if in_flight < 1:
        raise UserError(
            f"file descriptors: found a limit of {hard}, allowed: at least {hard - room + 2 * _PER_REQUEST}"
        )
    connections = min(settings.max_connections, room - _PER_REQUEST * in_flight)
    log.warning(
        "max_in_flight and max_connections: found %d and %d, lowered to %d and %d: "
        "the process may have %d file descriptors (ulimit -n)",
        settings.max_in_flight,
        settings.max_connections,
        in_flight,
        connections,
        hard,
    )
    return settings.but(max_in_flight=in_flight, max_connections=connections)


def backlog(limit: int | None = None) -> int:
    """Connections that may wait to be accepted, for all of them may come at once.

    Args:
        limit: of descriptors; default: the process' own.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    return 1024 if limit == resource.RLIM_INFINITY else max(16, min(1024, limit // 16))


def _used() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return _SPARE

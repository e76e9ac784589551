"""Whether a live run measured the policy, or a machine that was too busy to do things on time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

LatencyMs = Mapping[str, float | None]

CLIENT_LAG_P99_MS = 10.0
"""The load client sends requests at most this late."""
TRANSPORT_P99_MS = 10.0
"""Telemetry is under way for at most this long: a fraction of an iteration, so that decisions are about the present."""
SERVER_LAG_P99_MS = 10.0
"""Emulated servers live through what happens in them at most this late."""


def starved(client_lag_ms: LatencyMs, transport_ms: LatencyMs, server_lag_ms: Mapping[str, LatencyMs]) -> list[str]:
    """What was later than it may be: one line each, none if the numbers are the policy's.

    Args:
        client_lag_ms, transport_ms: as `LatencyHistogram.summary_ms` has them.
        server_lag_ms: the same of each emulated server.
    """
    measured = (
        ("client lag", client_lag_ms, CLIENT_LAG_P99_MS),
        ("telemetry transport", transport_ms, TRANSPORT_P99_MS),
        *((f"lag of {name}", lag_ms, SERVER_LAG_P99_MS) for name, lag_ms in server_lag_ms.items()),
    )
    return list(_beyond(measured))


def _beyond(measured: tuple[tuple[str, LatencyMs, float], ...]) -> Iterator[str]:
    for name, latency_ms, bound_ms in measured:
        p99_ms = latency_ms.get("p99")
        if p99_ms is not None and p99_ms > bound_ms:
            yield f"{name} p99 {p99_ms:.1f} ms, allowed: {bound_ms:g} ms"

"""What a run can tell and what not: 95 % confidence intervals of shares of its requests, and of the difference of two.

They hold for requests that meet their objective independently of each other. Those of one run do not, since a burst or
a busy moment of the machine hits many at once: the truth is at least so uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

RESOLVED_POINTS = 3.0
"""Where chance alone may move an attainment by more either way, whoever reads it is told."""
UNCLOCKED = (
    "Real servers beside simulated GPUs: their latencies do not follow the clock, so attainments are the machine's, "
    "not the policy's; energy is what the plant draws for the load that came, at the clocks that were set."
)
"""Said of runs of which `unclocked` is true."""
Z95 = 1.959964
"""The normal distribution holds 95 % within so many standard deviations."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Interval of a share of so many requests (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927, p. 209).

    Args:
        share: found, 0 to 1.
        count: of how many, at least 1.

    Returns:
        Low and high end, 0 to 1; both apart from the share even if it is 0 or 1.
    """
    scale = 1 + Z95**2 / count
    middle = share + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + (Z95 / (2 * count)) ** 2)
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def difference(share: float, count: int, other: float, others: int) -> tuple[float, float]:
    """Interval of `share` less `other`, each of its own number of requests.

    R. G. Newcombe, Stat. Med. 17, 1998, p. 873, method 10.

    Args:
        share, other: found, 0 to 1.
        count, others: of how many, at least 1.
    """
    (low, high), (other_low, other_high) = wilson(share, count), wilson(other, others)
    apart = share - other
    return (
        apart - math.hypot(share - low, other_high - other),
        apart + math.hypot(high - share, other - other_low),
    )


def unclocked(summary: Mapping[str, Any]) -> bool:
    """Whether the latencies of a run cannot be its policy's: real servers beside simulated GPUs."""
    live = summary.get("live")
    if not isinstance(live, Mapping):
        return False
    return live.get("control") == "simulated" and live.get("servers") in ("sglang", "attach")


def attainments_in_words(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The attainments of a summary for a person, as pairs of name and text; with the interval where that is wide."""
    return [(f"{kind.upper()} attainment", _met(summary, kind)) for kind in ("ttft", "itl")]


def _met(summary: Mapping[str, Any], kind: str) -> str:
    share, count = summary[f"{kind}_attainment"], summary["requests"]["submitted"]
    within = f"within {summary['slo'][f'{kind}_ms']:g} ms"
    if share is None:
        return f"- {within}"
    low, high = wilson(share, count)
    coarse = 50 * (high - low) > RESOLVED_POINTS
    interval = f" ({100 * low:.0f} to {100 * high:.0f} with 95 % confidence: {count} requests)" if coarse else ""
    return f"{100 * share:.1f} % {within}{interval}"

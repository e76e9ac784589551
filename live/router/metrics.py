"""Counters of the router in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from voltana.live.latency import LatencyHistogram

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """What the router counts."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """By path and status; status 499: the client left before its answer began."""
        self.outcomes: Counter[str] = Counter()
        self.retries = 0
        self.ttft_s = LatencyHistogram(BUCKETS_S)
        self.duration_s = LatencyHistogram(BUCKETS_S)

    def lines(self) -> Iterator[str]:
        """In Prometheus' form."""
        by_path = [({"path": path, "status": status}, n) for (path, status), n in sorted(self.requests.items())]
        yield from family("requests_total", "counter", "Requests answered, by path and status", by_path)
        outcomes = [({"outcome": outcome}, n) for outcome, n in sorted(self.outcomes.items())]
        yield from family("outcomes_total", "counter", "How routed requests ended", outcomes)
        yield from family("retries_total", "counter", "Connections tried at another instance", [({}, self.retries)])
        for name, text, histogram in (
            ("ttft_seconds", "From a request to the first byte of its answer's body", self.ttft_s),
            ("duration_seconds", "From a request to the end of its answer", self.duration_s),
        ):
            yield f"# HELP voltana_router_{name} {text}"
            yield f"# TYPE voltana_router_{name} histogram"
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), accumulate(histogram.counts), strict=True):
                yield f'voltana_router_{name}_bucket{{le="{bound}"}} {count}'
            yield f"voltana_router_{name}_sum {histogram.sum_s:.6f}"
            yield f"voltana_router_{name}_count {histogram.total}"


def family(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """One metric with its samples.

    Args:
        name: without the prefix.
        kind: counter or gauge.
        text: says what it is.
        samples: labels and value.
    """
    yield f"# HELP voltana_router_{name} {text}"
    yield f"# TYPE voltana_router_{name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"voltana_router_{name}{{{inside}}} {value}" if inside else f"voltana_router_{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

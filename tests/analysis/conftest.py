"""Synthetic run records: numbers chosen by the test, written by the real writer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from voltana.record import COMPLETED, FAILED, InstanceRow, RecordWriter, RequestRow
from voltana.record.summary import InstanceTotals, SummaryBuilder
from voltana.state import Slo

SLO = Slo(ttft_s=0.6, itl_s=0.06)

WriteRun = Callable[..., Path]
State = tuple[float, str, int | None, int, float | None]
"""Time, instance, clock, batch size, power."""


def request_rows(
    ttft_s: Sequence[float] = (0.1, 0.2, 0.3, 0.9), itl_s: float = 0.03, failed: int = 0
) -> list[RequestRow]:
    """Requests of 11 output tokens, one a second."""
    done = [
        RequestRow(
            i, i, 100, 11, "prefill-0", "decode-0", i, i + t, i + t, i + t + 10 * itl_s, t, itl_s, itl_s, COMPLETED
        )
        for i, t in enumerate(map(float, ttft_s))
    ]
    lost = [
        RequestRow(len(done) + i, 0.0, 100, 11, None, None, None, None, None, None, None, None, None, FAILED)
        for i in range(failed)
    ]
    return done + lost


def instance_rows(rows: Iterable[State]) -> list[InstanceRow]:
    return [
        InstanceRow(time, name, name.split("-")[0], clock, batch, batch * 100, 0, power)
        for time, name, clock, batch, power in rows
    ]


def configuration(policy: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a run; `changes` by key path with `__` for the dot."""
    config: dict[str, Any] = {
        "model": {"name": "llama31_8b", "layers": 32},
        "gpu": {"name": "a100_sxm4_80g"},
        "cluster": {"name": "2p2d", "prefill_instances": 2, "decode_instances": 2},
        "trace": {"name": "sharegpt", "path": None},
        "arrival": {"name": "poisson"},
        "slo": {"name": "paper", "ttft_ms": 600, "itl_ms": 60},
        "policy": {"name": policy, "decode_controller": {"_target_": f"{policy}.Controller"}},
        "rps": 75,
        "duration_s": 120,
        "seed": 13,
        "engine": "reference",
    }
    for path, value in changes.items():
        *parents, key = path.split("__")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    config["arrival"]["rate"] = config["rps"]
    config["arrival"]["seed"] = config["seed"]
    return config


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a record and return its folder.

    `requests` are arguments of `request_rows`. `arrivals` join those of the summary; {}: there are none, as of old.
    """

    def write(
        folder: str,
        policy: str,
        energy_kj: float = 100.0,
        *,
        requests: Mapping[str, Any] | None = None,
        instances: Iterable[State] = (),
        source: str = "sim",
        arrivals: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        config = configuration(policy, **changes)
        builder = SummaryBuilder(source, SLO, {"frequency": policy, "router": "any"})
        target = tmp_path / folder
        with RecordWriter(target, config) as writer:
            for row in request_rows(**requests or {}):
                writer.request(row)
                builder.add(row)
            for state in instance_rows(instances):
                writer.instance(state)
            totals = {
                "prefill-0": InstanceTotals("prefill", energy_kj * 400),
                "decode-0": InstanceTotals("decode", energy_kj * 600),
            }
            summary = builder.build(totals)
            summary["arrivals"] |= arrivals or {}
            if arrivals == {}:
                del summary["arrivals"]
            writer.summary(summary)
        return target

    return write

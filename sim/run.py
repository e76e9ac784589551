"""One simulated run: requests in, run record out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.build import RunBuilder
from sim.config import SimConfig, parse
from sim.recorder import Recorder
from voltana.errors import UserError
from voltana.record import RecordWriter, RunRecord

if TYPE_CHECKING:
    from sim.cluster import Cluster
    from sim.fast import FastCluster


def simulate(
    values: Mapping[str, Any], folder: Path, progress: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Run a configuration and write its record.

    Interrupted, it leaves a valid record of what was simulated so far, requests in flight as unfinished, and raises
    KeyboardInterrupt.

    Args:
        values: the resolved configuration (`conf/sim.yaml`).
        folder: where the record goes.
        progress: called with the time of each arrival, seconds.

    Returns:
        The summary.

    Raises:
        UserError: something in the configuration or the trace is wrong.
    """
    config = parse(SimConfig, values)
    builder = RunBuilder(config)
    spec, requests = builder.cluster(), builder.requests()
    with RecordWriter(folder, values) as writer:
        recorder = Recorder(writer, builder.slo, config.policy.about())
        cluster = engine(config.engine)(spec, requests, recorder, writer.instance, progress)
        started = time.perf_counter()

        def close(interrupted: bool) -> dict[str, Any]:
            wall = time.perf_counter() - started
            return recorder.close(cluster.now_s, [i.meter for i in cluster.instances], wall, interrupted)

        try:
            with rare_garbage_collection():
                cluster.run()
        except KeyboardInterrupt:
            close(interrupted=True)
            raise
        if not recorder.submitted:
            raise UserError("duration_s: no request arrives within it, allowed: long enough for at least one")
        summary = close(interrupted=False)
    if config.bound:
        from sim.bound import KEY, add_bound

        summary[KEY] = add_bound(RunRecord(folder)).total_j
    return summary


_interrupted = False


def simulate_in_worker(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`simulate` for a process that is handed runs one after another: none is begun after an interruption."""
    global _interrupted
    if _interrupted:
        raise KeyboardInterrupt
    try:
        return simulate(values, folder)
    except KeyboardInterrupt:
        _interrupted = True
        raise


def engine(name: str) -> type[Cluster] | type[FastCluster]:
    """The engine of a name; SimPy is imported for the reference alone."""
    if name == "reference":
        from sim.cluster import Cluster

        return Cluster
    from sim.fast import FastCluster

    return FastCluster


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """A simulation makes many objects and hardly any cycles: look for those a hundred times less often."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100 * thresholds[0], *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)

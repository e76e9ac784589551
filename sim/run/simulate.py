"""One simulated run: requests in, run record out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.errors import PolicyError
from voltana.record import RecordWriter, claim
from voltana.record.gpus import about_gpus
from voltana.record.provenance import dependencies, provenance
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.serving.recorder import Recorder

if TYPE_CHECKING:
    from voltana.sim.fast import FastCluster
    from voltana.sim.reference.cluster import Cluster


def simulate(
    values: Mapping[str, Any],
    folder: Path,
    progress: Callable[[float], None] = lambda _: None,
    *,
    overwrite: bool = False,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a configuration and write its record.

    Interrupted, it leaves a valid record of what was simulated so far, requests in flight as unfinished, and raises
    KeyboardInterrupt.

    Args:
        values: the resolved configuration (`conf/sim.yaml`).
        folder: where the record goes.
        progress: called with the time of each arrival, seconds.
        overwrite: whether the finished record of another configuration may be replaced.
        sweep: which sweep the run belongs to (`voltana.app.sweeps`).

    Returns:
        The summary.

    Raises:
        UserError: something in the configuration or the trace is wrong, or the record cannot be written there.
        PolicyError: a policy raised or answered what is not allowed; there is no summary then.
    """
    config = parse(SimConfig, values)
    builder = RunBuilder(config)
    spec, requests = builder.cluster(), builder.requests()
    about = provenance("sim", dependencies("sim", values, builder.predictor_files), sweep)
    with (
        claim(folder, values, overwrite=overwrite) as claimed,
        RecordWriter(folder, values, provenance=about, claimed=claimed) as writer,
    ):
        recorder = Recorder(writer, builder.slo, config.policy.about(), requests.about, about_gpus(values))
        cluster = engine(config.engine)(spec, requests, recorder, writer.instance, progress)
        started = time.perf_counter()

        def close(interrupted: bool) -> dict[str, Any]:
            wall = time.perf_counter() - started
            return recorder.close(cluster.now_s, cluster.meters, wall, interrupted)

        try:
            with rare_garbage_collection(), PolicyError.of(f"run {folder}"):
                cluster.run()
        except KeyboardInterrupt:
            close(interrupted=True)
            raise
        if not recorder.submitted:
            raise requests.none_arrived()
        return close(interrupted=False)


def engine(name: str) -> type[Cluster] | type[FastCluster]:
    """The engine of a name; SimPy is imported for the reference alone."""
    if name == "reference":
        from voltana.sim.reference.cluster import Cluster

        return Cluster
    from voltana.sim.fast import FastCluster

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

"""Simulated runs as studies of their energy read them, and the command that writes what a study found into records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from voltana.app.config import ClusterRun
from voltana.app.progress import Progress
from voltana.errors import UserError
from voltana.record import COMPLETED, SUMMARY, RunRecord, find_records, replace_summary
from voltana.section import parse
from voltana.sim.plant.build import Plants, build_plants
from voltana.sim.run.config import DriftConfig
from voltana.state import Slo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Requests(NamedTuple):
    """The requests that a run completed, an array each over them; times in seconds."""

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints

    @property
    def decoded(self) -> Ints:
        """Tokens of each that decode makes: all but the first, which is prefill's."""
        return self.output_tokens - 1

    @property
    def own_kv(self) -> Floats:
        """KV tokens of each, summed over its decode iterations: `i + 1` at the first, one more at every other."""
        n = self.decoded
        return np.asarray(n * (self.input_tokens + 1) + n * (n - 1) / 2)

    @property
    def pairs(self) -> Floats:
        """Causal attention pairs of each prompt."""
        return np.asarray(self.input_tokens * (self.input_tokens + 1) / 2)


class Cluster(NamedTuple):
    """How many instances there are, and what bounds a batch."""

    prefill_instances: int
    decode_instances: int
    prefill_tokens: int
    """Prompt tokens of a prefill batch; a longer prompt may run alone."""
    decode_requests: int
    decode_kv_tokens: int


class Misses(NamedTuple):
    """How many completed requests missed each objective."""

    ttft: int
    itl: int


class Recorded(NamedTuple):
    """A run as it was."""

    plants: Plants
    slo: Slo
    cluster: Cluster
    requests: Requests
    misses: Misses


class RecordedConfig(ClusterRun):
    """What is needed of a recorded configuration; records of other versions may hold more."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    drift: DriftConfig


def read(record: RunRecord) -> Recorded:
    """Read a finished, simulated run.

    Raises:
        UserError: it is of another kind, or its plant was noisy or drifted.
    """
    source = record.summary.get("source")
    if source != "sim":
        raise UserError(f"{record.folder}: found source {source!r}, allowed: simulated runs, whose plant is known")
    if record.interrupted:
        raise UserError(f"{record.folder}: found an interrupted run, allowed: runs that ended")
    config = parse(RecordedConfig, record.config)
    if config.serving.latency_noise or config.drift.at_s is not None:
        raise UserError(f"{record.folder}: found noise or drift, allowed: runs on a plant that stays as it is")
    if (record.config.get("planner") or {}).get("policy") is not None:
        raise UserError(f"{record.folder}: found a planner, allowed: runs in which all instances serve")
    plants = build_plants(config)
    prefill, decode = config.serving.prefill, config.serving.decode
    cluster = Cluster(
        config.cluster.prefill_instances,
        config.cluster.decode_instances,
        min(prefill.max_tokens, prefill.chunk_tokens or prefill.max_tokens),
        decode.max_requests,
        plants.decode.kv_capacity_tokens if decode.kv_tokens == "auto" else decode.kv_tokens,
    )
    table = record.requests()
    done = table[table["status"] == COMPLETED]
    requests = Requests(*(done[name].to_numpy() for name in Requests._fields))
    slo = Slo(*(record.summary["slo"][name] / 1e3 for name in ("ttft_ms", "itl_ms")))
    misses = Misses(int((done["ttft_s"] > slo.ttft_s).sum()), int((done["mean_itl_s"] > slo.itl_s).sum()))
    return Recorded(plants, slo, cluster, requests, misses)


class Found(NamedTuple):
    """What a study found for a record."""

    energy_j: float | None
    """None: there is no such energy for this run."""
    told: str
    """In words."""


def add(record: RunRecord, key: str, energy_j: float | None) -> None:
    """Write an energy into the summary of a record."""
    replace_summary(record.folder, {**record.summary, key: energy_j})


def command(
    prog: str, what: str, key: str, study: Callable[[RunRecord], Found], arguments: Sequence[str] | None
) -> int:
    """Add what a study finds to every record in or below the folders; say of each how far above it the run is.

    Args:
        prog: the module, for messages.
        what: is found, such as "the bound".
        key: of the summary.
        study: adds it to a record.
        arguments: of the command.

    Returns:
        The exit status: 2 if there is a record for which there is no such thing.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=f"Add {what} to records, as {key}.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="holds run records, in or below it")
    refused = 0
    try:
        records = find_records(parser.parse_args(arguments).folders)
        with Progress(what.split()[-1], len(records)) as progress:
            for record in records:
                try:
                    found, used_j = study(record), record.summary["energy_j"]["total"]
                except UserError as error:
                    print(f"{prog}: {what} is not to be had: {error}", file=sys.stderr)
                    refused += 1
                else:
                    print(f"{record.folder}: {used_j / 1e3:.1f} kJ, {_beside(what, used_j, found)}", flush=True)
                progress.step()
    except UserError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {key} into the {SUMMARY} of {len(records) - refused} records")
    return 2 if refused else 0


def _beside(what: str, used_j: float, found: Found) -> str:
    if found.energy_j is None:
        return f"no {what.removeprefix('the ')}: {found.told}"
    return f"{used_j / found.energy_j:.3f} times {what} of {found.energy_j / 1e3:.1f} ({found.told})"

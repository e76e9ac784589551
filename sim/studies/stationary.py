"""The stationary optimum of a run: `python -m voltana.sim.studies.stationary DIR...` writes its energy to records.

A yardstick for a steady load, much nearer to what can be reached than the lower bound (`voltana.sim.studies.bound`),
which knows the future. Requests are a fluid here: they flow at the run's rate R, all alike, of its mean lengths, and
nothing fluctuates. Where should instances, clocks and batches stand for ever, so that the power is least and both
objectives are met? What an iteration costs is what the plant says; X is its energy beside that of an idle instance at
the lowest clock, which all instances draw all the time.

**Decode** has N tokens to make per request, so R N = r per second. An instance that makes r_j of them per second and
gives every request a token each t <= S seconds, S the ITL objective, has by Little's law B = r_j t requests. Iterations
take T(B, f) <= t, and the instance idles for the rest. It costs X(B, f) / t = r_j X(B, f) / B. For every r_j the best
batch and clock are looked for, then the best way to split r over the decode instances, in steps of r / `STEPS`; one
that gets nothing is not in use. KV tokens per request are the mean over iterations, and must fit.

**Prefill** runs batches of b requests. They come 1 / R apart, so the first of a batch has waited for (b - 1) / R when
it runs, and (b - 1) / R + T(b, f) may be the TTFT objective. All instances together must have the time: R T / b of
them at least. A request costs X(b, f) / b.

**The energy** is that of all instances idling for as long as the run took, and the costs above for the requests that it
completed. What is left out would add to it: chance, which makes batches of unequal size and sends prompts in clusters;
transfers, the front end, a request's wait for the next decode iteration; changes of clocks. A run that misses
objectives may use less; so may one that is short, since it begins empty. It means something at one rate only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants
from voltana.sim.run.config import at_one_rate
from voltana.sim.studies.recorded import Cluster, Floats, Found, Requests, add, command, read
from voltana.state import Slo

KEY = "energy_stationary_j"
STEPS = 60
"""Parts into which the tokens of decode are split; a multiple of 1 to 6, so that even splits are among them."""


class Place(NamedTuple):
    """Where instances of a phase stand."""

    instances: int
    requests: int
    """Of a batch."""
    clock_mhz: int
    excess_j: float
    """Energy beside that of an idle instance; prefill: per request, decode: per token."""

    def __str__(self) -> str:
        return f"{self.instances} x {self.requests} requests at {self.clock_mhz} MHz"


class Optimum(NamedTuple):
    """Where a cluster stands at best."""

    idle_w: float
    """Power of all instances, idle at the lowest clock."""
    prefill: Place
    decode: tuple[Place, ...]
    """Of every decode instance in use; none where there is nothing to decode."""
    decode_j: float
    """Their excess energy per token, together."""

    def energy_j(self, requests: Requests, duration_s: float) -> float:
        """Energy for some requests over some time."""
        served_j = len(requests.arrival_s) * self.prefill.excess_j + float(requests.decoded.sum()) * self.decode_j
        return self.idle_w * duration_s + served_j


def optimum(plants: Plants, slo: Slo, cluster: Cluster, requests: Requests) -> Optimum | None:
    """The stationary optimum, as the module says; None if no clocks bear the rate within the objectives.

    Args:
        plants: of one instance of each phase.
        slo: the objectives.
        cluster: its size and limits.
        requests: at least two that do not come at once; their rate and mean lengths count.

    Raises:
        UserError: there are fewer, which have no rate.
    """
    count = len(requests.arrival_s)
    span_s = float(np.ptp(requests.arrival_s)) if count else 0.0
    if not span_s:
        raise UserError(f"found {count} completed requests at one time, allowed: some at different times")
    per_s = (count - 1) / span_s
    prefill = _prefill(plants.prefill, slo, cluster, requests, per_s)
    decode = _decode(plants.decode, slo, cluster, requests, per_s)
    if prefill is None or decode is None:
        return None
    tokens_per_s = per_s * float(requests.decoded.mean())
    decode_j = sum(place.excess_j * share for place, share in decode)
    counts = (cluster.prefill_instances, cluster.decode_instances)
    idle_w = sum(_idle_w(plant) * count for plant, count in zip(plants, counts, strict=True))
    return Optimum(idle_w, prefill, tuple(place for place, _ in decode), decode_j if tokens_per_s else 0.0)


def _prefill(plant: Plant, slo: Slo, cluster: Cluster, requests: Requests, per_s: float) -> Place | None:
    tokens, pairs, idle_w = float(requests.input_tokens.mean()), float(requests.pairs.mean()), _idle_w(plant)
    best: Place | None = None
    most = max(1, int(min(1 + slo.ttft_s * per_s, cluster.prefill_tokens / tokens)))
    for batch in range(1, most + 1):
        for clock in plant.gpu.clocks():
            step = plant.prefill(batch, round(batch * tokens), batch * pairs, clock)
            busy = per_s * step.duration_s / batch
            if busy > cluster.prefill_instances or (batch - 1) / per_s + step.duration_s > slo.ttft_s:
                continue
            excess_j = (step.power_w - idle_w) * step.duration_s / batch
            if best is None or excess_j < best.excess_j:
                best = Place(int(np.ceil(busy)), batch, clock, excess_j)
    return best


Shares = list[tuple[Place, float]]
"""Instances in use and the share of all tokens that each makes."""


def _decode(plant: Plant, slo: Slo, cluster: Cluster, requests: Requests, per_s: float) -> Shares | None:
    tokens = float(requests.decoded.sum())
    if not tokens:
        return []
    made_per_s, context = per_s * float(requests.decoded.mean()), float(requests.own_kv.sum()) / tokens
    most = min(cluster.decode_requests, int(cluster.decode_kv_tokens / context))
    price = cache(partial(_prices, plant, context))
    alone = [_alone(plant, slo, made_per_s * part / STEPS, most, price) for part in range(1, STEPS + 1)]
    costs = np.array([0.0] + [np.inf if place is None else place.excess_j * n for n, place in enumerate(alone, 1)])
    split = _cheapest_split(costs, cluster.decode_instances)
    if split is None:
        return None
    places = ((alone[part - 1], part / STEPS) for part in split)
    return [(place, share) for place, share in places if place is not None]


Price = tuple[int, float, float]
"""Clock, seconds of an iteration, and its excess energy per token."""


def _prices(plant: Plant, context: float, batch: int) -> list[Price]:
    """Decode iterations of a batch whose requests hold so many KV tokens each, at every clock, cheapest first."""
    steps = ((clock, plant.decode(batch, round(batch * context), clock)) for clock in plant.gpu.clocks())
    prices = [(mhz, step.duration_s, (step.power_w - _idle_w(plant)) * step.duration_s / batch) for mhz, step in steps]
    return sorted(prices, key=itemgetter(2))


def _alone(plant: Plant, slo: Slo, per_s: float, most: int, price: Callable[[int], list[Price]]) -> Place | None:
    """The best place of an instance that makes so many tokens per second."""
    best: Place | None = None
    for batch in _batches(plant, min(most, max(1, int(per_s * slo.itl_s)))):
        limit_s = min(slo.itl_s, batch / per_s)
        found = next(((mhz, excess_j) for mhz, seconds, excess_j in price(batch) if seconds <= limit_s), None)
        if found is not None and (best is None or found[1] < best.excess_j):
            best = Place(1, batch, *found)
    return best


def _batches(plant: Plant, largest: int) -> list[int]:
    """Where the cost of a token may be least up to a batch size: there, and at the ends of padding below it."""
    sizes = plant.engine.graph_batches if plant.engine.cuda_graph else ()
    return [*(size for size in sizes if largest / 2 < size < largest), largest]


def _cheapest_split(costs: Floats, instances: int) -> list[int] | None:
    """How to split all steps over instances, the cost of each number of steps on one being given; parts above 0."""
    steps = len(costs) - 1
    best, taken = costs, [np.arange(steps + 1)]
    for _ in range(instances - 1):
        sums = [best[n::-1] + costs[: n + 1] for n in range(steps + 1)]
        taken.append(np.array([each.argmin() for each in sums]))
        best = np.array([each.min() for each in sums])
    if not np.isfinite(best[steps]):
        return None
    parts, rest = [], steps
    for choice in reversed(taken):
        parts.append(int(choice[rest]))
        rest -= parts[-1]
    return [part for part in parts if part]


def _idle_w(plant: Plant) -> float:
    return plant.idle_power_w(plant.gpu.clock_min_mhz)


def optimum_of(record: RunRecord) -> tuple[Optimum, float] | None:
    """The optimum of a recorded run with its energy; None if no clocks bear its rate within its objectives.

    Raises:
        UserError: the record is of a run that has no such thing.
    """
    if not at_one_rate(record.config["arrival"]):
        raise UserError(f"{record.folder}: found arrivals at no one rate, allowed: those of poisson, gamma, uniform")
    run = read(record)
    try:
        found = optimum(run.plants, run.slo, run.cluster, run.requests)
    except UserError as error:
        raise UserError(f"{record.folder}: {error}") from error
    return found and (found, found.energy_j(run.requests, record.summary["duration_s"]))


def add_to(record: RunRecord) -> Found:
    """Write the energy of the stationary optimum into the summary of a run; null where there is none."""
    found = optimum_of(record)
    add(record, KEY, None if found is None else found[1])
    if found is None:
        return Found(None, "no clocks bear this rate within the objectives")
    best, energy_j = found
    decode = " + ".join(map(str, best.decode)) or "nothing"
    return Found(energy_j, f"idle {best.idle_w:.0f} W, prefill {best.prefill}, decode {decode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Add the optimum to every record in or below the folders; say of each how far above it the run is."""
    return command("voltana.sim.studies.stationary", "the stationary optimum", KEY, add_to, arguments)


if __name__ == "__main__":
    sys.exit(main())

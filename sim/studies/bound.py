"""A lower bound on the energy of a run: `python -m voltana.sim.studies.bound DIR...` writes it to records.

**What it bounds.** Take a run's requests, cluster, plant and objectives. Let any policy whatsoever serve the same
requests: any clocks and power caps at any moment, any routing, any composition and order of batches (within the
engine's limits), any pooling of slack, knowledge of the future. If it completes the requests that the run completed,
and at least as many of them within the TTFT objective and at least as many within the ITL objective as the run did,
then it uses no less energy than this. Launch gaps, transfers, waiting and clock changes, which only add time or
energy, are left out.

**Base.** Let P be the power of an idle instance at the lowest clock; idle power rises with the clock. M instances
draw at least M P for at least D = max over requests of (arrival + least time of a prefill + tokens to decode x least
time of an iteration) - first arrival. What is left of an iteration of T seconds and E joules is its excess X = E - P
T >= 0. So the energy is at least M P D plus the excess of all iterations; work is never shared by prefill and decode
instances. An iteration whose clock changes on the way, or that alternates between clocks under a power limit, is a
convex mixture of the iterations (T, X) at fixed clocks. What follows minimises functions linear in (T, X), so fixed
clocks are enough.

**Decode.** A request of i input and n + 1 output tokens takes part in exactly n iterations, at its k-th with i + k KV
tokens of its own, (i + 1) n + n (n - 1) / 2 in all. If it meets the ITL objective S, its iterations take n S at most.
For any price of time l >= 0 and any price of KV b, and B requests with K KV tokens together, let

    a(l, B) = min over clocks and K of  X(B, K) + l B T(B, K) - b K .

Of the B requests let A be those that meet S. Then

    X + l A T = A/B (X + l B T) + (1 - A/B) X  >=  A a(l, B)/B + (B - A) a(0, B)/B + b K ,

which falls apart into a share per request. Summed over all iterations, and less l times (n S - time of its
iterations) >= 0 for every request that meets S, the excess of decode is at least

    sum over requests of  n min_B a(l, B)/B - l n S + b (its KV tokens)     if it meets S,
                          n min_B a(0, B)/B         + b (its KV tokens)     if it does not.

Which ones miss S is the policy's choice, but they are no more than in the run: where the first line is larger, the
largest differences are taken off. The result is a bound for every l and b; the best found is used. Two facts narrow
the minima. K lies between the sums of the B smallest and B largest contexts that requests ever have, and within the
cache (stretched by the plant's `CHORD_GRID` ratio, because under a power limit its times are chords over such spans).
And B is no more than the engine allows, nor than the requests that can be decoding at once: one that meets both
objectives does so between its arrival and arrival + TTFT objective + n S; the others (at most the misses of both
kinds) whenever they like.

**Prefill.** At a fixed clock an iteration of m prompt tokens and q causal token pairs takes T = t(m) + t' q and has
the excess X = x(m) + x' q, all non-negative, t and x non-decreasing in m (and in the requests of the batch, taken as
one). A prompt of i tokens has i (i + 1) / 2 pairs, whether cut or whole. For any price of time u >= 0,

    X + u T >= alpha m + beta q,
    alpha = min over clocks and m of (x + u t)(m) / m,   beta = min over clocks of x' + u t',

falls apart into a share per request. Charge u only in iterations with a request that meets the TTFT objective: they
all lie between first arrival and last arrival + TTFT objective, so on M' prefill instances they take at most M' times
that. Hence the excess of prefill is at least the sum of the shares less u M' (last - first arrival + TTFT objective),
where requests that miss get the share at u = 0, again those with the largest differences. m is bounded as B is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana.record import RunRecord
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants
from voltana.sim.plant.decode import CHORD_GRID
from voltana.sim.plant.operators import LONG, SHORT, Operators, Work
from voltana.sim.plant.transformer import Transformer
from voltana.sim.studies.recorded import Cluster, Floats, Found, Ints, Misses, Requests, add, command, read
from voltana.state import Slo

KEY = "energy_bound_j"
KNOTS = (0.0, SHORT, LONG, 2 * LONG)
"""KV tokens per request between which decode time and energy are lines; the last line goes on."""
NO_LIMIT_W = 1e12
"""A power limit that never bites."""


class EnergyBound(NamedTuple):
    """The least energy, and what it is made of."""

    idle_j: float
    prefill_j: float
    decode_j: float

    @property
    def total_j(self) -> float:
        """The least energy of the whole run, in joules."""
        return sum(self)


def energy_bound(plants: Plants, slo: Slo, cluster: Cluster, requests: Requests, misses: Misses) -> EnergyBound:
    """Bound the energy of a run from below, as the module says.

    Args:
        plants: of one instance of each phase.
        slo: the objectives.
        cluster: its size and limits.
        requests: those that the run completed.
        misses: how many of them missed which objective.
    """
    if not len(requests.arrival_s):
        return EnergyBound(0.0, 0.0, 0.0)
    prefill = prefill_costs(
        plants.prefill, _power_of_two(max(cluster.prefill_tokens, int(requests.input_tokens.max())))
    )
    decode = decode_costs(plants.decode, min(cluster.decode_requests, _power_of_two(len(requests.arrival_s))))
    least_s = prefill.seconds.min() + requests.decoded * decode.seconds.min()
    duration_s = float((requests.arrival_s + least_s).max() - requests.arrival_s.min())
    counts = (cluster.prefill_instances, cluster.decode_instances)
    lowest_w = [plant.idle_power_w(plant.gpu.clock_min_mhz) for plant in plants]
    return EnergyBound(
        sum(count * idle_w for count, idle_w in zip(counts, lowest_w, strict=True)) * duration_s,
        float(_prefill_j(prefill, slo, cluster, requests, misses)),
        float(_decode_j(decode, slo, cluster, requests, misses)),
    )


def _power_of_two(number: int) -> int:
    """The next power of two: so that few different tables are made."""
    return 1 << (number - 1).bit_length()


def most_at_once(opens_s: Floats, closes_s: Floats, weights: Floats | Ints) -> float:
    """The largest total weight of spans that are open at one moment, their ends included."""
    times = np.concatenate([opens_s, closes_s])
    steps = np.concatenate([weights, -weights])
    order = np.lexsort((-steps, times))
    return float(np.cumsum(steps[order]).max(initial=0.0))


def _with_misses(met: NDArray[Any], missed: NDArray[Any], misses: int) -> float:
    """The least sum of shares when a policy may choose that many requests to miss."""
    return float(met.sum() - np.sort(np.maximum(met - missed, 0.0))[len(met) - min(misses, len(met)) :].sum())


# Prefill


class PrefillCosts(NamedTuple):
    """Time and excess of a batch at each clock (columns): rows for batches of `first` to `last` tokens, at `first`."""

    first: Ints
    last: Ints
    seconds: Floats
    excess_j: Floats
    pair_s: Floats
    """Per clock: what a token pair adds."""
    pair_excess_j: Floats


@lru_cache(maxsize=8)
def prefill_costs(plant: Plant, most_tokens: int) -> PrefillCosts:
    """Prefill on a plant without launch gaps and power limit."""
    plant, clocks = _without_launches(plant), plant.gpu.clocks()
    idle_w = plant.idle_power_w(clocks[0])
    edges = [*range(64), *range(64, 1024, 16), *range(1024, most_tokens, 64), most_tokens]
    edges = sorted({edge for edge in edges if edge <= most_tokens})

    def run(tokens: int, pairs: float, clock: int) -> tuple[float, float]:
        step = plant.prefill(1, tokens, pairs, clock, NO_LIMIT_W)
        return step.duration_s, (step.power_w - idle_w) * step.duration_s

    table = np.array([[run(edge + 1, 0.0, clock) for clock in clocks] for edge in edges[:-1]])
    many = 1e6
    paired = np.array([run(1, many, clock) for clock in clocks])
    pair = (paired - table[0]) / many
    return PrefillCosts(
        np.array(edges[:-1]) + 1, np.array(edges[1:]), table[..., 0], table[..., 1], pair[:, 0], pair[:, 1]
    )


def _prefill_j(costs: PrefillCosts, slo: Slo, cluster: Cluster, requests: Requests, misses: Misses) -> float:
    arrival_s, tokens, pairs = requests.arrival_s, requests.input_tokens, requests.pairs
    open_s = float(arrival_s.max() - arrival_s.min()) + slo.ttft_s
    late = np.sort(tokens)[len(tokens) - min(misses.ttft, len(tokens)) :].sum()
    together = most_at_once(arrival_s, arrival_s + slo.ttft_s, tokens) + late
    most = min(together, max(cluster.prefill_tokens, int(tokens.max())))
    possible = costs.first <= most
    divisor = np.minimum(costs.last[possible], most)[:, None]

    def shares(price_w: float) -> Floats:
        per_token = (costs.excess_j[possible] + price_w * costs.seconds[possible]) / divisor
        per_pair = costs.pair_excess_j + price_w * costs.pair_s
        return np.asarray(per_token.min() * tokens + per_pair.min() * pairs)

    free = shares(0.0)

    def bound(price_w: float) -> float:
        spent_w = price_w * cluster.prefill_instances
        return _with_misses(shares(price_w), free, misses.ttft) - spent_w * open_s

    return max(map(bound, (0.0, *np.geomspace(1.0, 1e4, 60))))


# Decode


class DecodeCosts(NamedTuple):
    """Time and excess by batch size (from 1), clock and knot of KV tokens per request."""

    seconds: Floats
    excess_j: Floats


@lru_cache(maxsize=8)
def decode_costs(plant: Plant, most_requests: int) -> DecodeCosts:
    """Decode on a plant without launch gaps and power limit: `Plant.decode`, for all loads at once."""
    model, engine, gpu, net = plant.model, plant.engine, plant.gpu, Transformer(plant.model)
    clocks, scale = gpu.clocks(), model.tp * engine.decode_activity
    table = np.empty((most_requests, len(clocks), len(KNOTS), 2))
    for column, clock in enumerate(clocks):
        ops = Operators(gpu, clock, engine.decode_slowdown)
        bases: dict[int, Work] = {}
        for batch in range(1, most_requests + 1):
            rows = engine.padded(batch)
            if rows not in bases:
                blocks = net.attention_block(ops, rows) * model.layers + net.all_feed_forward(ops, rows, 0.0)
                bases[rows] = blocks + net.head(ops, rows) + Work(engine.host_decode_s)
            for knot, context in enumerate(KNOTS):
                work = bases[rows] + net.all_decode_attention(ops, Work(), batch, context)
                dynamic_j = scale * (gpu.dynamic_scale(clock) * work.active_ws + work.dram_j)
                table[batch - 1, column, knot] = work.seconds, dynamic_j
    idle_w = np.array([plant.idle_power_w(clock) - plant.idle_power_w(clocks[0]) for clock in clocks])
    seconds, dynamic = table[..., 0], table[..., 1]
    return DecodeCosts(seconds, dynamic + idle_w[:, None] * seconds)


def _decode_j(costs: DecodeCosts, slo: Slo, cluster: Cluster, requests: Requests, misses: Misses) -> float:
    n, own_kv = requests.decoded, requests.own_kv
    closes_s = requests.arrival_s + slo.ttft_s + n * slo.itl_s
    together = int(most_at_once(requests.arrival_s, closes_s, (n > 0).astype(np.int64))) + misses.ttft + misses.itl
    most = min(together, cluster.decode_requests, int((n > 0).sum()))
    if most == 0:
        return 0.0
    batch = np.arange(1, most + 1)
    context = _contexts(requests, cluster.decode_kv_tokens, most)
    seconds, excess_j = (_at(values[:most], context) for values in costs)
    kv = (batch[:, None] * context)[:, None, :]

    def per_token(time_price_w: float, kv_price_j: float) -> float:
        cost = excess_j + (time_price_w * batch)[:, None, None] * seconds - kv_price_j * kv
        return float((cost.min((1, 2)) / batch).min())

    def bound(time_price_w: float, kv_price_j: float) -> float:
        met = n * (per_token(time_price_w, kv_price_j) - time_price_w * slo.itl_s)
        return _with_misses(met, n * per_token(0.0, kv_price_j), misses.itl) + kv_price_j * float(own_kv.sum())

    slope = costs.excess_j[most - 1, :, 3] - costs.excess_j[most - 1, :, 2]
    kv_price = float(slope.min()) / (LONG * most)
    time_price = float((excess_j.min((1, 2)) / batch).min()) / slo.itl_s
    return _maximise(bound, (0.1 * time_price, kv_price))


def _contexts(requests: Requests, kv_tokens: int, most: int) -> Floats:
    """By batch size: KV tokens per request at which a function of pieces may be least, the knots and the ends."""
    decoding = requests.decoded > 0
    inputs, n = requests.input_tokens[decoding], requests.decoded[decoding]
    batch = np.arange(1, most + 1)
    least = np.cumsum(np.sort(inputs + 1))[:most]
    largest = np.minimum(np.cumsum(np.sort(inputs + n)[::-1])[:most], kv_tokens)
    start, ratio = CHORD_GRID
    low = np.where(least < start * ratio, 0.0, least / ratio) / batch
    high = np.maximum(largest * ratio, start) / batch
    return np.stack([low, high, *(np.clip(knot, low, high) for knot in (SHORT, LONG))], axis=1)


def _at(values: Floats, context: Floats) -> Floats:
    """The pieces through `values` (batch, clock, knot) at `context` (batch, point): by batch, clock and point."""
    c, lines = context[:, None, :], zip(pairwise(KNOTS), range(len(KNOTS) - 1), strict=True)
    short, middle, long = (
        values[..., [k]] + (values[..., [k + 1]] - values[..., [k]]) * (c - low) / (high - low)
        for (low, high), k in lines
    )
    return np.where(c < SHORT, short, np.where(c < LONG, middle, long))


def _maximise(function: Callable[[float, float], float], start: tuple[float, float]) -> float:
    """The largest value found of a concave function of two prices; any value of it is a bound."""
    from scipy.optimize import minimize

    def loss(prices: Floats) -> float:
        return -function(abs(float(prices[0])), abs(float(prices[1])))

    best, point = function(0.0, start[1]), np.array(start)
    for _ in range(2):
        simplex = point * np.array([[1.0, 1.0], [2.0, 1.0], [1.0, 0.7]])
        found = minimize(loss, point, method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": 60})
        best, point = max(best, -float(found.fun)), np.abs(found.x)
    return best


def _without_launches(plant: Plant) -> Plant:
    """The plant whose kernels never wait for their launches, which only saves time."""
    return Plant(plant.gpu, plant.model, plant.engine.but(eager_launch_s=0.0))


# Records


def bound_of(record: RunRecord) -> EnergyBound:
    """The bound of a recorded run.

    Raises:
        UserError: the record is of a run that has no bound.
    """
    return energy_bound(*read(record))


def add_to(record: RunRecord) -> Found:
    """Write the bound of a run into its summary."""
    bound = bound_of(record)
    add(record, KEY, bound.total_j)
    idle, prefill, decode = (part / 1e3 for part in bound)
    return Found(bound.total_j, f"idle {idle:.1f}, prefill {prefill:.1f}, decode {decode:.1f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Add the bound to every record in or below the folders; say of each how far above it the run is."""
    return command("voltana.sim.studies.bound", "the bound", KEY, add_to, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The plant: duration and power of one iteration of one instance."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from voltana.errors import UserError
from voltana.sim.plant import decode
from voltana.sim.plant.decode import LimitedPieces, Piece
from voltana.sim.plant.engine import EngineSpec
from voltana.sim.plant.gpu import GpuSpec
from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.operators import LONG, SHORT, Operators, Work
from voltana.sim.plant.throttle import Point, under_limit
from voltana.sim.plant.transformer import Transformer


class Step(NamedTuple):
    """One iteration of a TP group."""

    duration_s: float
    power_w: float
    """Mean over the step, all GPUs of the group."""
    clock_mhz: float
    """Clock really in force, after power-limit throttling; a mean where the GPU alternates."""


class DecodeLine(NamedTuple):
    """Decode time and energy as lines in the batch's KV tokens, valid below `valid_up_to_kv_tokens`."""

    t0_s: float
    t_per_token_s: float
    e0_j: float
    e_per_token_j: float
    valid_up_to_kv_tokens: float


class _PrefillLine(NamedTuple):
    """Prefill of a given number of tokens at a clock, as a function of the token pairs."""

    block0_s: float
    block1_s: float
    """Attention blocks of all layers: block0_s + block1_s * pairs, at least `floor_s`."""
    floor_s: float
    rest_s: float
    e0_j: float
    e1_j: float
    idle_w: float

    def run(self, pairs: float, host_s: float) -> tuple[float, float]:
        """Seconds and joules, the GPU waiting for the host in between."""
        seconds = max(self.floor_s, self.block0_s + self.block1_s * pairs) + self.rest_s + host_s
        return seconds, self.e0_j + self.e1_j * pairs + self.idle_w * seconds


class Plant:
    """True physics of one instance: one model on a group of `model.tp` GPUs under one engine.

    Time is a sum over the operators of `voltana.sim.plant.transformer`; energy is the idle draw over the whole step
    plus what each operator adds. Both are functions of the arguments alone: nothing is random, and what is remembered
    (coefficients per load and clock, the last clock under the power limit) only saves work.
    """

    def __init__(self, gpu: GpuSpec, model: ModelSpec, engine: EngineSpec) -> None:
        self.gpu, self.model, self.engine = gpu, model, engine
        self.kv_bytes_per_token = model.kv_bytes_per_token()
        self.kv_capacity_tokens = self._capacity()
        self._transformer = Transformer(model)
        self._forms = _attention_forms(model.window)
        self._clocks = gpu.clocks()
        self._limit_w = model.tp * gpu.power_limit_w
        self._last_clock = self._last_decode_clock = 0.0
        self._prefill_ops: dict[float, Operators] = {}
        self._decode_bases: dict[tuple[int, bool, float], tuple[Operators, Work, Work, float]] = {}
        self._prefill_lines: dict[tuple[int, int, float], _PrefillLine] = {}
        self._free: dict[tuple[int, float], tuple[Piece, ...]] = {}
        self._pieces: dict[tuple[int, float, float | None], LimitedPieces] = {}

    def _capacity(self) -> int:
        memory = self.engine.mem_fraction * self.gpu.memory_gib * 2**30 * self.model.tp
        room = memory - self.model.weights_size_bytes()
        if room < self.kv_bytes_per_token:
            need = self.model.weights_size_bytes() / 2**30
            least = gpus_needed(self.gpu, self.model, self.engine)
            raise UserError(
                f"model.tp: found {self.model.tp}, whose GPUs hold {memory / 2**30:.0f} GiB; "
                f"allowed: enough GPUs for {need:.0f} GiB of weights and a KV cache, at least {least}"
            )
        return int(room / self.kv_bytes_per_token)

    def idle_power_w(self, clock_mhz: float) -> float:
        """Power of the group with a context loaded and nothing running, W."""
        return self.model.tp * self.gpu.idle_power_w(clock_mhz)

    def _dynamic_j(self, clock_mhz: float, work: Work, activity: float) -> float:
        """Energy of the group beside the idle draw."""
        scale = self.model.tp * activity
        return scale * (self.gpu.dynamic_scale(clock_mhz) * work.active_ws + work.dram_j)

    # Prefill

    def prefill(
        self, requests: int, tokens: int, token_pairs: float, clock_mhz: float, limit_w: float | None = None
    ) -> Step:
        """One prefill iteration.

        `tokens` are the new prompt tokens of the batch. `token_pairs` are its causal attention pairs: n (n + 1) / 2 for
        a whole prompt of n tokens, chunk * context + chunk (chunk + 1) / 2 for a chunk behind a context. `limit_w`
        is the power limit of the whole group; None: the GPU's own.
        """
        host_s = self.engine.host_prefill_s + requests * self.engine.host_request_s
        rows = -(-tokens // 16) * 16 if tokens > 64 else tokens
        heads = -(-requests // 64) * 64
        token_pairs = self._transformer.attended_pairs(tokens, token_pairs)

        def run(clock: float) -> tuple[float, float]:
            line = self._prefill_lines.get((rows, heads, clock)) or self._prefill_line(rows, heads, clock)
            return line.run(token_pairs, host_s)

        seconds, joules, clock = under_limit(
            run, self._clocks, clock_mhz, self._limit_w if limit_w is None else limit_w, self._last_clock
        )
        self._last_clock = clock
        return Step(seconds, joules / seconds, clock)

    def _prefill_line(self, rows: int, requests: int, clock: float) -> _PrefillLine:
        layers, engine, net = self.model.layers, self.engine, self._transformer
        ops = self._prefill_ops.get(clock)
        if ops is None:
            ops = self._prefill_ops[clock] = Operators(self.gpu, clock, engine.prefill_slowdown, eager=True)
        block = (net.attention_block(ops, rows) + net.prefill_attention_tokens(ops, rows)) * layers
        floor_s = layers * engine.eager_launch_s * net.attention_launches
        forward = net.all_feed_forward(ops, rows, engine.eager_launch_s)
        head = net.head(ops, requests)
        pair = net.prefill_attention_pair(ops) * layers
        line = self._prefill_lines[rows, requests, clock] = _PrefillLine(
            block.seconds,
            pair.seconds,
            floor_s,
            forward.seconds + head.seconds,
            self._dynamic_j(clock, block + forward + head, engine.prefill_activity),
            self._dynamic_j(clock, pair, engine.prefill_activity),
            self.idle_power_w(clock),
        )
        return line

    # Decode

    def decode(self, batch_size: int, kv_tokens: int, clock_mhz: float, limit_w: float | None = None) -> Step:
        """One decode iteration of `batch_size` requests that together hold `kv_tokens` KV tokens."""
        key = (batch_size, clock_mhz, limit_w)
        pieces = self._pieces.get(key) or self._decode_pieces(key)
        _, _, t0, t1, e0, e1, clock0, clock1 = pieces.at(kv_tokens)
        seconds = t0 + t1 * kv_tokens
        return Step(seconds, (e0 + e1 * kv_tokens) / seconds, clock0 + clock1 * kv_tokens)

    def decode_line(
        self, batch_size: int, clock_mhz: float, kv_tokens: float = 0.0, limit_w: float | None = None
    ) -> DecodeLine:
        """The line on which `decode` lies at `kv_tokens`, and up to which KV tokens it holds.

        From `valid_up_to_kv_tokens` on the next line holds: ask again with that number. Pieces end where attention
        changes its form, where a launch-bound block becomes GPU-bound, and where the power limit sets in.
        """
        key = (batch_size, clock_mhz, limit_w)
        piece = (self._pieces.get(key) or self._decode_pieces(key)).at(kv_tokens)
        return DecodeLine(piece.t0, piece.t1, piece.e0, piece.e1, piece.end)

    def _decode_pieces(self, key: tuple[int, float, float | None]) -> LimitedPieces:
        """Pieces under the power limit."""
        batch_size, clock, asked_w = key
        limit_w = self._limit_w if asked_w is None else asked_w

        def solve(kv_tokens: float) -> Point:
            run = partial(self._unlimited, batch_size, kv_tokens)
            point = under_limit(run, self._clocks, clock, limit_w, self._last_decode_clock)
            self._last_decode_clock = point.clock_mhz
            return point

        pieces = self._pieces[key] = LimitedPieces(self._free_pieces(batch_size, clock), limit_w, solve)
        return pieces

    def _unlimited(self, batch_size: int, kv_tokens: float, clock: float) -> tuple[float, float]:
        """Seconds and joules of a decode iteration without a power limit."""
        piece = decode.at(self._free_pieces(batch_size, clock), kv_tokens)
        return piece.t0 + piece.t1 * kv_tokens, piece.e0 + piece.e1 * kv_tokens

    def _free_pieces(self, batch_size: int, clock: float) -> tuple[Piece, ...]:
        """Pieces without a power limit."""
        pieces = self._free.get((batch_size, clock))
        if pieces is None:
            pieces = self._free[batch_size, clock] = tuple(self._build_pieces(batch_size, clock))
        return pieces

    def _build_pieces(self, batch_size: int, clock: float) -> Iterator[Piece]:
        """One piece per form of decode attention, cut where a launch-bound attention block becomes GPU-bound.

        The batch is padded for everything but attention, whose padded rows have no context.
        """
        net, activity = self._transformer, self.engine.decode_activity
        ops, block, rest, floor_s = self._decode_base(batch_size, clock)
        idle_w = self.idle_power_w(clock)

        def point(context: float, waits: bool) -> Point:
            attention = net.all_decode_attention(ops, block, batch_size, context)
            seconds = (floor_s if waits else attention.seconds) + rest.seconds
            return Point(seconds, self._dynamic_j(clock, attention + rest, activity) + idle_w * seconds, clock)

        for low, high, end in self._forms:
            start, stop, valid_to = batch_size * low, batch_size * high, batch_size * end
            busy = decode.through(start, point(low, False), stop, point(high, False), valid_to)
            busy_from = _reaches(busy, floor_s + rest.seconds)
            if busy_from > start:
                waiting = decode.through(start, point(low, True), stop, point(high, True), valid_to)
                yield waiting._replace(end=min(busy_from, valid_to))
            if busy_from < valid_to:
                yield busy._replace(start=max(start, busy_from))

    def _decode_base(self, batch_size: int, clock: float) -> tuple[Operators, Work, Work, float]:
        """What batches padded to one size share: operators, attention block, all else, launch floor of attention."""
        engine, net, layers = self.engine, self._transformer, self.model.layers
        rows, captured = engine.padded(batch_size), engine.captured(batch_size)
        base = self._decode_bases.get((rows, captured, clock))
        if base is None:
            launch_s = 0.0 if captured else engine.eager_launch_s
            ops = Operators(self.gpu, clock, engine.decode_slowdown)
            forward = net.all_feed_forward(ops, rows, launch_s)
            rest = forward + net.head(ops, rows) + Work(engine.host_decode_s)
            base = ops, net.attention_block(ops, rows), rest, layers * launch_s * net.attention_launches
            self._decode_bases[rows, captured, clock] = base
        return base


def _attention_forms(window: int) -> tuple[tuple[float, float, float], ...]:
    """Ranges of context in which decode attention is one line: two points of it, and where it ends."""
    ends = sorted({SHORT, LONG, float(window)} - {0.0})
    ranges = [(low, high, high) for low, high in pairwise([0.0, *ends])]
    return (*ranges, (ends[-1], 2.0 * ends[-1], math.inf))


def _reaches(piece: Piece, seconds: float) -> float:
    """From how many KV tokens on a piece takes at least so long; minus or plus infinity if that does not change."""
    if piece.t1 > 0.0:
        return (seconds - piece.t0) / piece.t1
    return -math.inf if piece.t0 >= seconds else math.inf


def gpus_needed(gpu: GpuSpec, model: ModelSpec, engine: EngineSpec) -> int:
    """GPUs of the smallest group, a power of two, that holds the weights and a KV cache."""
    tp = 1
    while engine.mem_fraction * gpu.memory_gib * 2**30 * tp <= model.weights_size_bytes() + model.kv_bytes_per_token():
        tp *= 2
    return tp

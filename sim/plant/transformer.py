"""A transformer as operators: the two blocks of a layer and the output projection, on one GPU of the group."""

import math

from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.operators import ATTENTION_KERNELS, ExpertLoad, Operators, Work

EXPERT_LAUNCHES = 9
"""Kernels of a layer's experts: norm, router, choice of experts, sorting (2), GEMM, activation, GEMM, sum."""


class Transformer:
    """The kernels of one model; `rows` are the tokens computed in an iteration."""

    def __init__(self, model: ModelSpec) -> None:
        self.model = model
        self._qkv = (model.gpu_heads + 2 * model.gpu_kv_heads) * model.head_dim
        self._rotated = (model.gpu_heads + model.gpu_kv_heads) * model.head_dim
        norms = 1 if model.qk_norm else 0
        self._attention_elementwise = 3 + norms
        self.attention_launches = 2 + self._attention_elementwise + norms + ATTENTION_KERNELS
        """Kernels of the attention block: 2 GEMMs, norm, rotary embedding, KV store, head norms (2), attention."""
        self.feed_forward_launches = 4
        """Norm, 2 GEMMs, gated activation."""

    def attention_block(self, ops: Operators, rows: int) -> Work:
        """Norm, QKV projection, rotary embedding, KV store, output projection, all-reduce; without attention itself."""
        m = self.model
        passes = 4 if m.qk_norm else 2
        elements = 4 * m.hidden + passes * self._rotated + 4 * m.gpu_kv_heads * m.head_dim
        return (
            ops.gemm(rows, self._qkv, m.hidden, m.dtype_bytes, m.weight_bytes)
            + ops.gemm(rows, m.hidden, m.gpu_heads * m.head_dim, m.dtype_bytes, m.weight_bytes)
            + ops.elementwise(rows * elements * m.dtype_bytes, self._attention_elementwise)
            + ops.all_reduce(m.tp, rows * m.hidden * m.dtype_bytes)
        )

    def all_feed_forward(self, ops: Operators, rows: int, launch_s: float) -> Work:
        """The feed-forward blocks of all layers, each taking at least the launches of its kernels."""
        m, least_s = self.model, launch_s * self.feed_forward_launches
        dense = self.feed_forward(ops, rows).stretched(least_s) * (m.layers - m.expert_layers)
        if not m.experts:
            return dense
        shared = self.feed_forward_launches if m.shared_ffn else 0
        least_s = launch_s * (EXPERT_LAUNCHES + shared)
        return dense + self.expert_block(ops, rows).stretched(least_s) * m.expert_layers

    def expert_block(self, ops: Operators, rows: int) -> Work:
        """Norm, router, routed experts, shared experts; all-reduce, or all-to-all there and back.

        With `ep` above 1 every GPU sends its share of the tokens to those that have their experts, at most one copy to
        each. The routing of a batch is taken at its mean: `ExpertLoad.of`.
        """
        m = self.model
        own = m.experts // m.ep
        load = ExpertLoad.of(rows * m.experts_per_token / m.ep, max(1.0, own * m.routing_skew))
        work = (
            ops.gemm(rows, m.experts, m.hidden, m.dtype_bytes)
            + ops.experts(load, m.hidden, max(1, m.expert_ffn * m.ep // m.tp), m.dtype_bytes, m.routed_bytes)
            + ops.elementwise(rows * 4 * m.hidden * m.dtype_bytes, 1)
        )
        if m.shared_ffn:
            work += self._gated(ops, rows, m.shared_ffn // m.tp)
        size = rows * m.hidden * m.dtype_bytes
        if m.ep == 1:
            return work + ops.all_reduce(m.tp, size)
        copies = m.ep * -math.expm1(m.experts_per_token * math.log1p(-1.0 / m.ep))
        return work + ops.all_to_all(m.ep, copies * size / m.ep) * 2.0

    def _gated(self, ops: Operators, rows: int, width: int) -> Work:
        m = self.model
        return (
            ops.gemm(rows, 2 * width, m.hidden, m.dtype_bytes, m.weight_bytes)
            + ops.gemm(rows, m.hidden, width, m.dtype_bytes, m.weight_bytes)
            + ops.elementwise(rows * 3 * width * m.dtype_bytes, 1)
        )

    def feed_forward(self, ops: Operators, rows: int) -> Work:
        """Norm, gate and up projection, gated activation, down projection, all-reduce."""
        m = self.model
        width = m.ffn // m.tp
        return (
            ops.gemm(rows, 2 * width, m.hidden, m.dtype_bytes, m.weight_bytes)
            + ops.gemm(rows, m.hidden, width, m.dtype_bytes, m.weight_bytes)
            + ops.elementwise(rows * (4 * m.hidden + 3 * width) * m.dtype_bytes, 2)
            + ops.all_reduce(m.tp, rows * m.hidden * m.dtype_bytes)
        )

    def head(self, ops: Operators, requests: int) -> Work:
        """Logits of one token per request."""
        m = self.model
        return ops.gemm(requests, m.vocab // m.tp, m.hidden, m.dtype_bytes)

    def decode_attention(self, ops: Operators, batch_size: int, context: float) -> Work:
        """Attention of `batch_size` requests with `context` tokens each."""
        m = self.model
        return ops.decode_attention(batch_size * m.gpu_kv_heads, context, 2 * m.head_dim * m.cache_bytes)

    def all_decode_attention(self, ops: Operators, block: Work, batch_size: int, context: float) -> Work:
        """The attention blocks of all layers, of which `block` is the part beside attention."""
        m = self.model
        full = (block + self.decode_attention(ops, batch_size, context)) * (m.layers - m.window_layers)
        if not m.window:
            return full
        windowed = block + self.decode_attention(ops, batch_size, min(context, float(m.window)))
        return full + windowed * m.window_layers

    def attended_pairs(self, tokens: int, pairs: float) -> float:
        """Causal token pairs of a layer in the mean over layers, some of which look no further than the window.

        Args:
            tokens: new ones of the batch.
            pairs: theirs in a layer that sees all. The prompts are taken to be equally long, n = 2 pairs / tokens - 1:
                a windowed layer has ``w - w (w - 1) / (2 n)`` pairs per token of a prompt longer than the window.
        """
        m, length = self.model, 2.0 * pairs / tokens - 1.0
        if length <= m.window or not m.window:
            return pairs
        windowed = tokens * (m.window - m.window * (m.window - 1) / (2.0 * length))
        return pairs + (windowed - pairs) * (m.window_layers / m.layers)

    def prefill_attention_tokens(self, ops: Operators, rows: int) -> Work:
        """What the attention of one layer costs per token, pairs left out."""
        m = self.model
        moved = rows * 2 * m.head_dim * (m.gpu_heads + m.gpu_kv_heads) * m.dtype_bytes
        return ops.prefill_attention_tokens(rows, moved, m.gpu_heads, m.head_dim)

    def prefill_attention_pair(self, ops: Operators) -> Work:
        """One causal token pair in one layer."""
        return ops.prefill_attention_pair(self.model.gpu_heads, self.model.head_dim)

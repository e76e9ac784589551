"""A transformer as operators: the two blocks of a layer and the output projection, on one GPU of the group."""

from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.operators import ATTENTION_KERNELS, Operators, Work


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
            ops.gemm(rows, self._qkv, m.hidden, m.dtype_bytes)
            + ops.gemm(rows, m.hidden, m.gpu_heads * m.head_dim, m.dtype_bytes)
            + ops.elementwise(rows * elements * m.dtype_bytes, self._attention_elementwise)
            + ops.all_reduce(m.tp, rows * m.hidden * m.dtype_bytes)
        )

    def feed_forward(self, ops: Operators, rows: int) -> Work:
        """Norm, gate and up projection, gated activation, down projection, all-reduce."""
        m = self.model
        width = m.ffn // m.tp
        return (
            ops.gemm(rows, 2 * width, m.hidden, m.dtype_bytes)
            + ops.gemm(rows, m.hidden, width, m.dtype_bytes)
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
        return ops.decode_attention(batch_size * m.gpu_kv_heads, context, 2 * m.head_dim * m.dtype_bytes)

    def prefill_attention_tokens(self, ops: Operators, rows: int) -> Work:
        """What the attention of one layer costs per token, pairs left out."""
        m = self.model
        moved = rows * 2 * m.head_dim * (m.gpu_heads + m.gpu_kv_heads) * m.dtype_bytes
        return ops.prefill_attention_tokens(rows, moved, m.gpu_heads, m.head_dim)

    def prefill_attention_pair(self, ops: Operators) -> Work:
        """One causal token pair in one layer."""
        return ops.prefill_attention_pair(self.model.gpu_heads, self.model.head_dim)

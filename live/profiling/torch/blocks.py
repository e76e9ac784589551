"""One GPU's share of a transformer in torch: random weights at the real shapes, and its prefill and decode iterations.

Tensor parallelism is the shapes alone: heads, KV heads, feed-forward width and vocabulary are divided by `model.tp`,
nothing is sent to other GPUs. Kernels are those that torch has: GEMMs of cuBLAS, `scaled_dot_product_attention`,
a fused RMS norm. Weights are scaled so that activations stay finite, since power depends on the data.

An iteration runs all layers but may hold fewer: it then goes round those it holds. Weights of one layer are larger than
a GPU's second-level cache for all but tiny models, so that going round costs the same reads from memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from voltana.errors import UserError
from voltana.live.profiling.cells import Cell
from voltana.sim.plant import ModelSpec

if TYPE_CHECKING:
    import torch

EPSILON = 1e-5
ROPE_BASE = 500_000.0
"""Of Llama 3; any other takes the same time."""


class Shapes(NamedTuple):
    """Sizes of one GPU's share."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    @classmethod
    def of(cls, model: ModelSpec) -> Shapes:
        """The share of one GPU of `model.tp`; what does not divide is rounded up, as the largest share would be.

        Raises:
            UserError: the model has experts, a window, or other weights than its activations.
        """
        if model.experts or model.window or model.layer_bytes != model.dtype_bytes:
            raise UserError(
                f"model: found {model.name}, allowed with profile.source=torch: dense, full attention, bf16"
            )
        return cls(
            model.hidden,
            model.gpu_heads,
            model.gpu_kv_heads,
            model.head_dim,
            -(-model.ffn // model.tp),
            -(-model.vocab // model.tp),
        )

    @property
    def rotated(self) -> int:
        """Width of queries and keys together."""
        return (self.heads + self.kv_heads) * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of the four GEMMs of a layer."""
        qkv = self.rotated + self.kv_heads * self.head_dim
        return self.hidden * (qkv + self.heads * self.head_dim + 3 * self.ffn)

    @property
    def head_weights(self) -> int:
        """Weights of the output projection."""
        return self.hidden * self.vocab

    @property
    def kv_elements(self) -> int:
        """Elements of one token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_dim

    def activation_bytes(self, tokens: int) -> int:
        """What an iteration over so many tokens holds at its peak, roughly: residual, norm, QKV, two feed-forwards."""
        return 2 * tokens * (2 * self.hidden + 4 * self.rotated + 4 * self.ffn)


class Layer(NamedTuple):
    """Weights of one layer, each `(out, in)` as servers keep them, and room for its keys and values."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    head_norm: torch.Tensor
    out: torch.Tensor
    feed_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    kv: torch.Tensor


class Shard:
    """Weights and KV room on a device.

    Args:
        model: the architecture.
        device: where.
        stored_layers: layers held; iterations go round them.
        kv_tokens: KV tokens of the largest iteration.
        seed: of the random numbers.
    """

    def __init__(self, model: ModelSpec, device: torch.device, stored_layers: int, kv_tokens: int, seed: int) -> None:
        import torch

        self.model = model
        self.device = device
        self.shapes = Shapes.of(model)
        self._random = torch.Generator(device).manual_seed(seed)
        s = self.shapes
        self.layers = [self._layer(kv_tokens * s.kv_elements) for _ in range(stored_layers)]
        self.head = self._normal(s.vocab, s.hidden)
        self.norm = self._ones(s.hidden)

    def _layer(self, kv_elements: int) -> Layer:
        s = self.shapes
        return Layer(
            self._ones(s.hidden),
            self._normal(s.rotated + s.kv_heads * s.head_dim, s.hidden),
            self._ones(s.head_dim),
            self._normal(s.hidden, s.heads * s.head_dim),
            self._ones(s.hidden),
            self._normal(2 * s.ffn, s.hidden),
            self._normal(s.hidden, s.ffn),
            self._normal(kv_elements, 1),
        )

    def _ones(self, size: int) -> torch.Tensor:
        import torch

        return torch.ones(size, device=self.device, dtype=torch.bfloat16)

    def _normal(self, rows: int, columns: int) -> torch.Tensor:
        """Random weights that keep the variance of what they multiply."""
        import torch

        empty = torch.empty(rows, columns, device=self.device, dtype=torch.bfloat16)
        return empty.normal_(0.0, 1.0 / math.sqrt(columns), generator=self._random)

    def token_ids(self, count: int) -> torch.Tensor:
        """Random tokens; the embedding is the output projection's matrix, whichever the model has."""
        import torch

        return torch.randint(self.shapes.vocab, (count,), device=self.device, generator=self._random)

    def rotary(self, positions: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine of each row's position: `(rows, 1, 2, head_dim / 2)`, for the two halves of a head."""
        import torch

        half = self.shapes.head_dim // 2
        steps = torch.arange(half, device=self.device, dtype=torch.float32)
        angles = torch.as_tensor(positions, device=self.device)[:, None] / ROPE_BASE ** (steps / half)
        cosine, sine = angles.cos(), angles.sin()
        shape = (-1, 1, 2, half)
        both = torch.cat([cosine, cosine], -1).view(shape), torch.cat([-sine, sine], -1).view(shape)
        return both[0].to(torch.bfloat16), both[1].to(torch.bfloat16)


class Iteration:
    """One iteration of a shard, ready to be run again and again: everything it reads is allocated here, once."""

    def __init__(self, shard: Shard, cell: Cell, rows: int, layers: int, positions: Sequence[int] | torch.Tensor):
        self._shard = shard
        self._cell = cell
        self._count = layers
        self._ids = shard.token_ids(rows)
        self._cosine, self._sine = shard.rotary(positions)

    def __call__(self) -> torch.Tensor:
        """Run it; the result is the next token of each request (of each padded row, in decode)."""
        from torch.nn import functional as f

        shard, s = self._shard, self._shard.shapes
        x = f.embedding(self._ids, shard.head)
        for index in range(self._count):
            self._layer(x, shard.layers[index % len(shard.layers)])
        last = f.rms_norm(self._last(x), (s.hidden,), shard.norm, EPSILON)
        return f.linear(last, shard.head).argmax(-1)

    def _layer(self, x: torch.Tensor, layer: Layer) -> None:
        """Both blocks of a layer, added to `x` in place: the GEMM's own epilogue does the residual sum."""
        from torch.nn import functional as f

        s = self._shard.shapes
        normed = f.rms_norm(x, (s.hidden,), layer.attention_norm, EPSILON)
        qkv = f.linear(normed, layer.qkv)
        qk = qkv[:, : s.rotated].unflatten(1, (-1, s.head_dim))
        if self._shard.model.qk_norm:
            qk = f.rms_norm(qk, (s.head_dim,), layer.head_norm, EPSILON)
        qk = self._rotate(qk)
        value = qkv[:, s.rotated :].unflatten(1, (-1, s.head_dim))
        mixed = self._attend(qk[:, : s.heads], qk[:, s.heads :], value, layer.kv)
        x.addmm_(mixed, layer.out.t())
        normed = f.rms_norm(x, (s.hidden,), layer.feed_norm, EPSILON)
        gate, up = f.linear(normed, layer.gate_up).chunk(2, -1)
        x.addmm_(f.silu(gate).mul_(up), layer.down.t())

    def _rotate(self, qk: torch.Tensor) -> torch.Tensor:
        """Rotary embedding in three kernels."""
        import torch

        halves = qk.unflatten(2, (2, -1))
        return torch.addcmul(halves * self._cosine, halves.flip(2), self._sine).flatten(2)

    def _last(self, x: torch.Tensor) -> torch.Tensor:
        """The rows whose next token is wanted."""
        raise NotImplementedError

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Keep keys and values, attend: `(rows, heads * head_dim)`."""
        raise NotImplementedError


class Prefill(Iteration):
    """Whole prompts of equal length, causal within each."""

    def __init__(self, shard: Shard, cell: Cell, layers: int) -> None:
        import torch

        positions = torch.arange(cell.length, device=shard.device).repeat(cell.batch_size)
        super().__init__(shard, cell, cell.tokens, layers, positions)

    def _last(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (self._cell.batch_size, -1))[:, -1]

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as f

        s, prompts = self._shard.shapes, self._cell.batch_size
        cache = kv.view(-1)[: self._cell.tokens * s.kv_elements].view(2, *k.shape)
        cache[0].copy_(k)
        cache[1].copy_(v)
        q, k, v = (part.unflatten(0, (prompts, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.heads != s.kv_heads)
        return mixed.transpose(1, 2).flatten(0, 1).flatten(1)


class Decode(Iteration):
    """One new token for each request of a batch, over contexts of equal length.

    Attention is over the requests alone, all else over `rows`, the batch size that the CUDA graph is captured for.

    The query heads that share a KV head stand as rows of one query, so that torch's flash kernel reads each key once
    and splits long contexts over the SMs (it counts blocks of queries, not heads). Head h uses KV head h mod kv_heads:
    with random weights as good as any order, and the kernel's output then needs no copy.
    """

    def __init__(self, shard: Shard, cell: Cell, layers: int, rows: int) -> None:
        import torch

        super().__init__(shard, cell, rows, layers, [cell.length - 1] * rows)
        width = shard.shapes.heads * shard.shapes.head_dim
        self._padded = None
        if rows > cell.batch_size:
            self._padded = torch.zeros(rows, width, device=shard.device, dtype=torch.bfloat16)

    def _last(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as f

        s, batch = self._shard.shapes, self._cell.batch_size
        shape = (2, batch, self._cell.length, s.kv_heads, s.head_dim)
        cache = kv.view(-1)[: self._cell.tokens * s.kv_elements].view(shape)
        cache[0, :, -1].copy_(k[:batch])
        cache[1, :, -1].copy_(v[:batch])
        query = q[:batch].unflatten(1, (-1, s.kv_heads)).transpose(1, 2)
        mixed = f.scaled_dot_product_attention(query, cache[0].transpose(1, 2), cache[1].transpose(1, 2))
        mixed = mixed.transpose(1, 2).flatten(1)
        if self._padded is None:
            return mixed
        self._padded[:batch].copy_(mixed)
        return self._padded

"""The model: an architecture, from which all its work and memory follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from voltana.errors import UserError
from voltana.sim.plant import checks


@dataclass(frozen=True)
class ModelSpec:
    """A dense decoder-only transformer with grouped-query attention and a gated feed-forward block."""

    name: str
    layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward block."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tp: int
    """GPUs of a tensor-parallel group, one instance."""
    slo: Mapping[str, float]
    """Default objectives: `ttft_ms`, `itl_ms`."""
    token_scale: float
    """Tokens of this model's tokenizer per token of the embedded traces' tokenizer."""
    dtype_bytes: int = 2
    tied_embeddings: bool = False
    """The output projection shares the input embedding's weights."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from the `model` section of a configuration."""
        return checks.build(cls, "model", mapping)

    def __post_init__(self) -> None:
        for key in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "tp", "dtype_bytes"):
            checks.count(f"model.{key}", getattr(self, key))
        checks.positive("model.token_scale", self.token_scale)
        if self.heads % self.kv_heads:
            raise UserError(f"model.kv_heads: found {self.kv_heads}; allowed: a divisor of model.heads={self.heads}")
        if self.heads % self.tp:
            raise UserError(f"model.tp: found {self.tp}; allowed: a divisor of model.heads={self.heads}")
        if not isinstance(self.slo, Mapping) or set(self.slo) != {"ttft_ms", "itl_ms"}:
            raise UserError(f"model.slo: found {self.slo!r}; allowed: a mapping with ttft_ms and itl_ms")
        for key, value in self.slo.items():
            checks.positive(f"model.slo.{key}", value)

    @property
    def gpu_heads(self) -> int:
        """Query heads of one GPU."""
        return self.heads // self.tp

    @property
    def gpu_kv_heads(self) -> int:
        """KV heads of one GPU; with more GPUs than heads each holds a copy."""
        return max(1, self.kv_heads // self.tp)

    def parameters(self) -> int:
        """Number of weights, norms left out."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + embeddings

    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, whole TP group, bytes."""
        return 2 * self.layers * self.gpu_kv_heads * self.tp * self.head_dim * self.dtype_bytes

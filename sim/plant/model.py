"""The model: an architecture, from which all its work and memory follow."""

from pydantic import ValidationInfo, field_validator

from voltana.section import Count, Flag, Positive, Section


class ModelSpec(Section):
    """`model`: a dense decoder-only transformer with grouped-query attention and a gated feed-forward block."""

    name: str
    layers: Count
    hidden: Count
    ffn: Count
    """Width of the feed-forward block."""
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab: Count
    tp: Count
    """GPUs of a tensor-parallel group, one instance."""
    slo: dict[str, Positive]
    """Default objectives: `ttft_ms`, `itl_ms`."""
    token_scale: Positive
    """Tokens of this model's tokenizer per token of the embedded traces' tokenizer."""
    dtype_bytes: Count = 2
    tied_embeddings: Flag = False
    """The output projection shares the input embedding's weights."""
    qk_norm: Flag = False
    """Queries and keys are normalised per head."""

    @field_validator("kv_heads", "tp")
    @classmethod
    def _divides_heads(cls, value: int, others: ValidationInfo) -> int:
        heads = others.data.get("heads", value)
        if heads % value:
            raise ValueError(f"a divisor of model.heads = {heads}")
        return value

    @field_validator("slo")
    @classmethod
    def _both_objectives(cls, slo: dict[str, float]) -> dict[str, float]:
        if set(slo) != {"ttft_ms", "itl_ms"}:
            raise ValueError("a mapping with ttft_ms and itl_ms")
        return slo

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

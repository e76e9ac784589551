"""The model: an architecture, from which all its work and memory follow."""

from typing import Annotated, Self

from pydantic import ValidationInfo, field_validator, model_validator

from voltana.section import Count, Flag, Positive, Section, WholeNumber, between


class ModelSpec(Section):
    """`model`: a decoder-only transformer with grouped-query attention and gated feed-forward blocks.

    Layers are dense, or mixtures of experts (`experts` above 0), or some of each; attention is full, or over a window.
    """

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
    window: WholeNumber = 0
    """Tokens that layers with a sliding window attend to; 0: there are none. KV memory is counted in full."""
    window_layers: WholeNumber = 0
    experts: WholeNumber = 0
    """Routed experts of a layer; 0: a dense model."""
    experts_per_token: WholeNumber = 0
    expert_ffn: WholeNumber = 0
    """Width of one expert."""
    shared_ffn: WholeNumber = 0
    """Width of the experts that every token passes, together."""
    expert_layers: WholeNumber = 0
    """Layers that have experts; the others are dense, of width `ffn`."""
    ep: Count = 1
    """GPUs over which whole experts are spread; each group of tp / ep GPUs shares the width of its experts."""
    routing_skew: Annotated[float, between(0.05, 1)] = 1.0
    """Experts that tokens really spread over, as a share: 1 for even routing."""
    weight_bytes: Positive | None = None
    """Bytes of a weight in the layers; null: `dtype_bytes`. 1: fp8."""
    expert_bytes: Positive | None = None
    """The same of the experts; null: `weight_bytes`. 0.53: MXFP4."""
    kv_bytes: Positive | None = None
    """Bytes of an element of keys and values; null: `dtype_bytes`."""

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

    @model_validator(mode="after")
    def _mixture(self) -> Self:
        if self.tp % self.ep or (self.ep > 1 and self.experts % self.ep):
            raise ValueError(f"ep, a divisor of tp = {self.tp} and of experts = {self.experts}")
        if self.experts and not (0 < self.experts_per_token <= self.experts and self.expert_ffn):
            raise ValueError(f"with experts, experts_per_token from 1 to {self.experts} and expert_ffn above 0")
        if self.expert_layers > self.layers or (self.experts > 0) != (self.expert_layers > 0):
            raise ValueError(f"expert_layers up to layers = {self.layers}, above 0 exactly with experts")
        if self.window_layers > self.layers or (self.window > 0) != (self.window_layers > 0):
            raise ValueError(f"window_layers up to layers = {self.layers}, above 0 exactly with a window")
        return self

    @property
    def gpu_heads(self) -> int:
        """Query heads of one GPU."""
        return self.heads // self.tp

    @property
    def gpu_kv_heads(self) -> int:
        """KV heads of one GPU; with more GPUs than heads each holds a copy."""
        return max(1, self.kv_heads // self.tp)

    @property
    def layer_bytes(self) -> float:
        """Bytes of a weight in the layers."""
        return self.dtype_bytes if self.weight_bytes is None else self.weight_bytes

    @property
    def routed_bytes(self) -> float:
        """Bytes of a weight of a routed expert."""
        return self.layer_bytes if self.expert_bytes is None else self.expert_bytes

    @property
    def cache_bytes(self) -> float:
        """Bytes of an element of keys and values."""
        return self.dtype_bytes if self.kv_bytes is None else self.kv_bytes

    def parameters(self) -> int:
        """Number of weights, norms left out."""
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self._layer_parameters() + self._routed_parameters() + embeddings

    def active_parameters(self) -> int:
        """Weights that one token passes."""
        idle = self.experts - self.experts_per_token
        return self.parameters() - 3 * self.expert_layers * idle * self.hidden * self.expert_ffn

    def weights_size_bytes(self) -> float:
        """Memory of all weights, whole group; embeddings and output projection stay in `dtype_bytes`."""
        layers, routed = self._layer_parameters(), self._routed_parameters()
        embeddings = (self.parameters() - layers - routed) * self.dtype_bytes
        return layers * self.layer_bytes + routed * self.routed_bytes + embeddings

    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, whole TP group, bytes."""
        return int(2 * self.layers * self.gpu_kv_heads * self.tp * self.head_dim * self.cache_bytes)

    def _layer_parameters(self) -> int:
        """Weights of the layers but for routed experts."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        dense = (self.layers - self.expert_layers) * 3 * self.hidden * self.ffn
        shared = self.expert_layers * self.hidden * (3 * self.shared_ffn + self.experts)
        return self.layers * attention + dense + shared

    def _routed_parameters(self) -> int:
        return 3 * self.expert_layers * self.experts * self.hidden * self.expert_ffn

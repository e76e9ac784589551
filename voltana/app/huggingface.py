"""The section `model` of a model whose `config.json` is in the form of Hugging Face's transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voltana.errors import UserError
from voltana.files import read_json_object

MODELLED = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "llama",
    "llama4_text",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)
"""`model_type` of the architectures whose every layer the plant has operators for."""
REFUSED = {
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "num_nextn_predict_layers": "multi-token prediction",
    "mtp_num_hidden_layers": "multi-token prediction",
    "linear_num_value_heads": "linear attention",
    "mamba_num_heads": "recurrent layers (Mamba)",
    "ssm_state_size": "recurrent layers (Mamba)",
    "hybrid_override_pattern": "hybrid layers",
    "attn_type_list": "hybrid layers",
    "index_topk": "sparse attention",
}
"""Keys that tell of what is not modelled."""
KEPT = ("tp", "ep", "routing_skew", "weight_bytes", "expert_bytes", "kv_bytes", "slo", "token_scale")
"""What of the section is the user's, not the architecture's."""


def from_path(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` with its key `path` replaced by the architecture found there.

    Args:
        section: `path` is a folder with a `config.json`, such a file, or an id on the Hugging Face hub where
            huggingface_hub is installed.

    Raises:
        UserError: nothing is there, or it is not modelled.
    """
    path = section["path"]
    if not isinstance(path, str) or not path:
        raise UserError(
            f"model.path: found {path!r}, allowed: a folder, a config.json, or the id of a model on the hub"
        )
    file = _file(path)
    config = read_json_object(file, "the config.json of a model")
    name = file.parent.name if Path(path).exists() else path.rpartition("/")[2]
    told = {key: section[key] for key in KEPT if section.get(key) is not None}
    return {"name": name, **_architecture(config, str(file)), **_beside(file), **told}


def _beside(file: Path) -> dict[str, float]:
    """Bytes by a quantization that stands in a file of its own, as NVIDIA's exports have it."""
    other = file.with_name("hf_quant_config.json")
    if not other.is_file():
        return {}
    try:
        told = json.loads(other.read_text(encoding="utf-8"))["quantization"]
        weights, cache = told.get("quant_algo"), told.get("kv_cache_quant_algo")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{other}: {error}; allowed: a section quantization") from error
    for key, found in (("quant_algo", weights), ("kv_cache_quant_algo", cache)):
        if found not in (None, "FP8"):
            raise UserError(f"{other}: quantization.{key}: found {found!r}, allowed: FP8, null")
    return ({"weight_bytes": 1.0} if weights else {}) | ({"kv_bytes": 1.0} if cache else {})


def _file(path: str) -> Path:
    found = Path(path)
    if found.is_dir():
        found /= "config.json"
    if found.is_file():
        return found
    if found.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise UserError(f"model.path: found {path}, where there is no config.json")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"model.path: found {path}, neither a folder nor a file; as an id on the hub it needs huggingface_hub"
        ) from error
    try:
        return Path(hf_hub_download(path, "config.json"))
    except Exception as error:
        raise UserError(f"model.path: {path} could not be had from the hub: {error}") from error


def _architecture(whole: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The keys of `ModelSpec`; of a model for text and images, those of its language model."""
    config: Mapping[str, Any] = whole.get("text_config") or whole
    for key, what in REFUSED.items():
        if config.get(key):
            raise UserError(f"{file}: {key}: found {config[key]!r}, {what}, which is not modelled")
    kind = config.get("model_type")
    if kind not in MODELLED:
        raise UserError(f"{file}: model_type: found {kind!r}, allowed: {', '.join(MODELLED)}")
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention", "chunked_attention"}
    if kinds:
        raise UserError(f"{file}: layer_types: found {', '.join(sorted(map(str, kinds)))}, which is not modelled")

    def number(*keys: str) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        raise UserError(f"{file}: {keys[0]}: found {config.get(keys[0])!r}, allowed: a whole number above 0")

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    layers = number("num_hidden_layers")
    return {
        "layers": layers,
        "hidden": hidden,
        "ffn": number("intermediate_size_mlp", "intermediate_size"),
        "heads": heads,
        "kv_heads": number("num_key_value_heads", "num_attention_heads"),
        "head_dim": number("head_dim") if config.get("head_dim") else hidden // heads,
        "vocab": number("vocab_size"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        "qk_norm": kind in ("qwen3", "qwen3_moe", "gemma3_text") or bool(config.get("use_qk_norm")),
        **_window(config, layers),
        **_experts(config, layers, number),
        **_precision(config.get("quantization_config") or whole.get("quantization_config"), file),
    }


def _window(config: Mapping[str, Any], layers: int) -> dict[str, int]:
    """The sliding window, and how many layers have one."""
    chunk, kinds = config.get("attention_chunk_size"), config.get("layer_types")
    window = chunk or config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return {}
    if kinds:
        windowed = sum(kind != "full_attention" for kind in kinds)
    elif config.get("model_type") == "gemma2":
        windowed = (layers + 1) // 2
    elif config.get("sliding_window_pattern"):
        windowed = layers - layers // int(config["sliding_window_pattern"])
    elif chunk:
        windowed = layers - layers // 4  # Llama 4: every fourth layer sees all
    else:
        windowed = layers
    return {"window": int(window), "window_layers": windowed} if windowed else {}


def _experts(config: Mapping[str, Any], layers: int, number: Any) -> dict[str, int]:
    experts = config.get("num_local_experts") or config.get("num_experts")
    if not experts:
        return {}
    step = int(config.get("interleave_moe_layer_step") or config.get("decoder_sparse_step") or 1)
    llama = config.get("model_type") == "llama4_text"
    width = number("intermediate_size") if llama else number("moe_intermediate_size", "intermediate_size")
    return {
        "experts": int(experts),
        "experts_per_token": number("num_experts_per_tok", "experts_per_token"),
        "expert_ffn": width,
        "shared_ffn": width if llama else 0,
        "expert_layers": layers // step - len(config.get("mlp_only_layers") or ()),
    }


def _precision(quantization: object, file: str) -> dict[str, float]:
    """Bytes of weights by the quantization that the file tells of."""
    if not isinstance(quantization, Mapping):
        return {}
    method = quantization.get("quant_method")
    if method == "fp8":
        return {"weight_bytes": 1.0}
    if method == "mxfp4":
        return {"expert_bytes": 0.53125}  # 4 bits, and 8 for every 32 weights
    raise UserError(f"{file}: quantization_config.quant_method: found {method!r}, allowed: fp8, mxfp4, none")

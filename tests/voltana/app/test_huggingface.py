"""The section `model` from a config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from voltana.app.huggingface import from_path
from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.plant import ModelSpec
from voltana.sim.run.compose import compose_sim

OWN = {"tp": 1, "slo": {"ttft_ms": 1500, "itl_ms": 150}, "token_scale": 0.8}
DENSE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
MIXTURE = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def read(folder: Path, config: Any, **section: Any) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return parse(ModelSpec, from_path({**OWN, "path": str(folder), **section}), "model")


def test_a_dense_model_is_read(tmp_path: Path) -> None:
    model = read(tmp_path / "mine", DENSE, tp=2)
    assert (model.name, model.layers, model.kv_heads, model.head_dim, model.tp) == ("mine", 32, 8, 128, 2)
    assert model.parameters() == 8_029_995_008
    assert from_path({**OWN, "path": str(tmp_path / "mine" / "config.json")})["hidden"] == 4096


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "qwen3", "head_dim": 64}, {"qk_norm": True, "head_dim": 64}),
        ({"model_type": "gemma"}, {"tied_embeddings": True}),
        ({"model_type": "mistral", "sliding_window": 4096}, {"window": 4096, "window_layers": 32}),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, {"window": 0}),
        ({"model_type": "gemma2", "sliding_window": 4096}, {"window_layers": 16}),
        ({"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 6}, {"window_layers": 27}),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 128}, {"window_layers": 16}),
        ({"quantization_config": {"quant_method": "fp8"}}, {"layer_bytes": 1.0, "cache_bytes": 2}),
    ],
)
def test_shapes_of_other_families(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = read(tmp_path, {**DENSE, **changes})
    assert {key: getattr(model, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MIXTURE, {"experts": 128, "expert_ffn": 768, "expert_layers": 32, "shared_ffn": 0}),
        ({**MIXTURE, "decoder_sparse_step": 2}, {"expert_layers": 16}),
        ({**DENSE, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, {"expert_ffn": 14336}),
        (
            {"text_config": {**DENSE, "model_type": "llama4_text", "num_local_experts": 16, "num_experts_per_tok": 1,
                             "intermediate_size_mlp": 16384, "attention_chunk_size": 8192}},
            {"ffn": 16384, "expert_ffn": 14336, "shared_ffn": 14336, "window": 8192, "window_layers": 24},
        ),
        (
            {**DENSE, "model_type": "gpt_oss", "num_local_experts": 128, "experts_per_token": 4,
             "quantization_config": {"quant_method": "mxfp4"}},
            {"experts_per_token": 4, "routed_bytes": 0.53125, "layer_bytes": 2},
        ),
    ],
)  # fmt: skip
def test_mixtures_of_experts(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    model = read(tmp_path, config)
    assert {key: getattr(model, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**DENSE, "kv_lora_rank": 512}, r"multi-head latent attention \(MLA\), which is not modelled"),
        ({**DENSE, "num_nextn_predict_layers": 1}, "multi-token prediction, which is not modelled"),
        ({**DENSE, "mamba_num_heads": 64}, r"recurrent layers \(Mamba\), which is not modelled"),
        ({**DENSE, "layer_types": ["linear_attention", "full_attention"]}, "linear_attention, which is not modelled"),
        ({**DENSE, "model_type": "bert"}, "model_type: found 'bert', allowed: gemma, "),
        ({**DENSE, "hidden_size": "big"}, "hidden_size: found 'big', allowed: a whole number above 0"),
        ({**DENSE, "quantization_config": {"quant_method": "awq"}}, "quant_method: found 'awq', allowed: fp8, mxfp4"),
        ([], "found list, allowed: the config.json of a model"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(tmp_path: Path, config: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path, config)


def test_a_quantization_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}))
    model = read(tmp_path, DENSE)
    assert (model.layer_bytes, model.cache_bytes) == (1.0, 1.0)
    beside.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(UserError, match="quant_algo: found 'NVFP4', allowed: FP8, null"):
        read(tmp_path, DENSE)


@pytest.mark.parametrize("path", ["/nowhere", "./here/or/there", 3, ""])
def test_a_path_that_leads_nowhere_is_told(path: object) -> None:
    with pytest.raises(UserError, match=r"^model\.path: found "):
        from_path({**OWN, "path": path})


def test_a_run_has_the_architecture_in_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    values = compose_sim("model=hf", f"model.path={tmp_path}", "model.tp=2", "model.ep=2")
    assert "path" not in values["model"]
    assert parse(ModelSpec, values["model"], "model").ep == 2
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    assert "experts" not in compose_sim("model=hf", f"model.path={tmp_path}", "model.tp=2")["model"]

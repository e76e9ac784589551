"""A tiny random Llama and its tokenizer, made on the spot: ``python -m voltana.live.servers.sglang.tiny_llama FOLDER``.

Runs in the environment of `voltana.live.servers.sglang.environment`; nothing is downloaded. 0.8 million weights in two
layers, 8,192 tokens of context. Its answers are nonsense, but always the same, and servers treat it like any other
model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

VOCABULARY = 2048
CONTEXT_TOKENS = 8192
SEED = 0
WEIGHT_SPREAD = 0.1
"""Standard deviation of the weights. At the usual 0.02 all next tokens are nearly alike, and a rounding error picks
another one; a test that compares greedy answers needs them further apart."""

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def make(folder: Path) -> None:
    """Write model and tokenizer.

    Args:
        folder: where to; made if it is not there.
    """
    make_tokenizer().save_pretrained(folder)
    make_model().save_pretrained(folder)


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer, trained on the help texts that come with Python."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found]
    from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model() -> Any:
    """A Llama of two layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=WEIGHT_SPREAD,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

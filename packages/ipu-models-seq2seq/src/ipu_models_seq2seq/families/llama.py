# SPDX-License-Identifier: Apache-2.0
"""Llama: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from ..shared_points import with_gates

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

LLAMA = Family(
    model_type="llama",
    package="ipu_models_seq2seq",
    layout=("embed_tokens", "layers.*", "norm"),
    models=(
        "LlamaModel",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "LlamaForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    points=with_gates("layers.{layer}", "LLAMA"),
)

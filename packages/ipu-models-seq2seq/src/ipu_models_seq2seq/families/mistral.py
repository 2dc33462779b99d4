# SPDX-License-Identifier: Apache-2.0
"""Mistral: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from ..shared_points import with_gates
from .llama import TINY

MISTRAL = Family(
    model_type="mistral",
    package="ipu_models_seq2seq",
    layout=("embed_tokens", "layers.*", "norm"),
    models=(
        "MistralModel",
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        "MistralForTokenClassification",
        "MistralForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    points=with_gates("layers.{layer}", "MISTRAL"),
)

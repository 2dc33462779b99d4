# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .llama import TINY

GPT_NEOX = Family(
    model_type="gpt_neox",
    package="ipu_models_seq2seq",
    layout=("embed_in", "layers.*", "final_layer_norm"),
    models=(
        "GPTNeoXModel",
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        "GPTNeoXForTokenClassification",
        "GPTNeoXForQuestionAnswering",
    ),
    tiny={**TINY, "pad_token_id": 0},
)

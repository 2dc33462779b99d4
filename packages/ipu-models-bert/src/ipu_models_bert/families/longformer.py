# SPDX-License-Identifier: Apache-2.0
"""Longformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

LONGFORMER = Family(
    model_type="longformer",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=(
        "LongformerModel",
        "LongformerForMaskedLM",
        "LongformerForSequenceClassification",
        "LongformerForMultipleChoice",
        "LongformerForTokenClassification",
        "LongformerForQuestionAnswering",
    ),
    tiny={
        **TINY,
        "num_attention_heads": 4,
        "attention_window": 8,
        "sep_token_id": 2,
        "pad_token_id": 1,
        # Global attention is computed at every position here, and dropout draws for each; upstream at global ones.
        "attention_probs_dropout_prob": 0.0,
    },
    edits=("ipu_models_bert.longformer_static:EDITS",),
    checks=("ipu_models_bert.longformer_static:checked",),
    sample="ipu_models_bert.longformer_static:with_separators",
)

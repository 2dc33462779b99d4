# SPDX-License-Identifier: Apache-2.0
"""I-BERT: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

IBERT = Family(
    model_type="ibert",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=(
        "IBertModel",
        "IBertForMaskedLM",
        "IBertForSequenceClassification",
        "IBertForMultipleChoice",
        "IBertForTokenClassification",
        "IBertForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4},
    edits=("ipu_models_bert.ibert_static:EDITS",),
)

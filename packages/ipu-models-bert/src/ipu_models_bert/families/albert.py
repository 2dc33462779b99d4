# SPDX-License-Identifier: Apache-2.0
"""ALBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

ALBERT = Family(
    model_type="albert",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.embedding_hidden_mapping_in", "encoder.albert_layer_groups.*", "pooler"),
    models=(
        "AlbertModel",
        "AlbertForPreTraining",
        "AlbertForMaskedLM",
        "AlbertForSequenceClassification",
        "AlbertForMultipleChoice",
        "AlbertForTokenClassification",
        "AlbertForQuestionAnswering",
    ),
    tiny={**TINY, "embedding_size": 16},
)

# SPDX-License-Identifier: Apache-2.0
"""DistilBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

DISTILBERT = Family(
    model_type="distilbert",
    package="ipu_models_bert",
    layout=("embeddings", "transformer.layer.*"),
    models=(
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForMultipleChoice",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
    ),
    tiny={"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": 99, "max_position_embeddings": 64},
)

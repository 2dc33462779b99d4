# SPDX-License-Identifier: Apache-2.0
"""RoBERTa: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

ROBERTA = Family(
    model_type="roberta",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=(
        "RobertaModel",
        "RobertaForMaskedLM",
        "RobertaForCausalLM",
        "RobertaForSequenceClassification",
        "RobertaForMultipleChoice",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ),
    tiny=TINY,
)

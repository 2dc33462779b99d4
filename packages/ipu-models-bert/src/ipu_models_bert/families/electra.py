# SPDX-License-Identifier: Apache-2.0
"""ELECTRA: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

ELECTRA = Family(
    model_type="electra",
    package="ipu_models_bert",
    layout=("embeddings", "embeddings_project", "encoder.layer.*"),
    models=(
        "ElectraModel",
        "ElectraForPreTraining",
        "ElectraForMaskedLM",
        "ElectraForCausalLM",
        "ElectraForSequenceClassification",
        "ElectraForMultipleChoice",
        "ElectraForTokenClassification",
        "ElectraForQuestionAnswering",
    ),
    tiny={**TINY, "embedding_size": 16},
    edits=("ipu_models_bert.losses:ATTENDED_TOKENS",),
    sample="ipu_models_bert.samples:replaced_tokens",
)

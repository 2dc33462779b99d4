# SPDX-License-Identifier: Apache-2.0
"""GroupBERT, the architecture in `ipu_models_bert.groupbert`: the encoder and its six heads."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

GROUPBERT = Family(
    model_type="groupbert",
    package="ipu_models_bert",
    plain_in="ipu_models_bert.groupbert",
    layout=("embeddings", "encoder.layer.*", "pooler"),
    models=(
        "GroupBertModel",
        "GroupBertForPreTraining",
        "GroupBertForMaskedLM",
        "GroupBertForSequenceClassification",
        "GroupBertForMultipleChoice",
        "GroupBertForTokenClassification",
        "GroupBertForQuestionAnswering",
    ),
    tiny=TINY,
)

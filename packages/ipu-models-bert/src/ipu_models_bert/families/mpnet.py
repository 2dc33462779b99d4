# SPDX-License-Identifier: Apache-2.0
"""MPNet: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

MPNET = Family(
    model_type="mpnet",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.relative_attention_bias", "encoder.layer.*", "pooler"),
    models=(
        "MPNetModel",
        "MPNetForMaskedLM",
        "MPNetForSequenceClassification",
        "MPNetForMultipleChoice",
        "MPNetForTokenClassification",
        "MPNetForQuestionAnswering",
    ),
    tiny=TINY,
)

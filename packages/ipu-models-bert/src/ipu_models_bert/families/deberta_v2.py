# SPDX-License-Identifier: Apache-2.0
"""DeBERTa v2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY
from .deberta import RELATIVE

DEBERTA_V2 = Family(
    model_type="deberta-v2",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.layer.*", "encoder.conv"),
    models=(
        "DebertaV2Model",
        "DebertaV2ForMaskedLM",
        "DebertaV2ForSequenceClassification",
        "DebertaV2ForMultipleChoice",
        "DebertaV2ForTokenClassification",
        "DebertaV2ForQuestionAnswering",
    ),
    tiny={**TINY, **RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    edits=("ipu_models_bert.losses:LABELLED_ROWS",),
)

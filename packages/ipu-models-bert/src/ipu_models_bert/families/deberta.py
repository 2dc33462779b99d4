# SPDX-License-Identifier: Apache-2.0
"""DeBERTa: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}

DEBERTA = Family(
    model_type="deberta",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.layer.*"),
    models=(
        "DebertaModel",
        "DebertaForMaskedLM",
        "DebertaForSequenceClassification",
        "DebertaForTokenClassification",
        "DebertaForQuestionAnswering",
    ),
    tiny={**TINY, **RELATIVE, "max_relative_positions": 16},
    edits=("ipu_models_bert.losses:LABELLED_ROWS",),
)

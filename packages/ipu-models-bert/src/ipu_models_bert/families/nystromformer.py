# SPDX-License-Identifier: Apache-2.0
"""Nystroemformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bert import TINY

NYSTROMFORMER = Family(
    model_type="nystromformer",
    package="ipu_models_bert",
    layout=("embeddings", "encoder.layer.*"),
    models=(
        "NystromformerModel",
        "NystromformerForMaskedLM",
        "NystromformerForSequenceClassification",
        "NystromformerForMultipleChoice",
        "NystromformerForTokenClassification",
        "NystromformerForQuestionAnswering",
    ),
    tiny={**TINY, "num_attention_heads": 4, "num_landmarks": 16, "segment_means_seq_len": 16},
    edits=("ipu_models_bert.nystromformer_static:EDITS",),
)

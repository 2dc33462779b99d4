# SPDX-License-Identifier: Apache-2.0
"""LXMERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

LXMERT = Family(
    model_type="lxmert",
    package="ipu_models_vision",
    layout=("embeddings", "encoder.visn_fc", "encoder.layer.*", "encoder.r_layers.*", "encoder.x_layers.*", "pooler"),
    models=("LxmertModel", "LxmertForPreTraining", "LxmertForQuestionAnswering"),
    tiny={
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
        "max_position_embeddings": 64,
        "l_layers": 2,
        "r_layers": 1,
        "x_layers": 1,
        "visual_feat_dim": 8,
        "num_qa_labels": 5,
        "num_object_labels": 6,
        "num_attr_labels": 4,
    },
    edits=("ipu_models_vision.answers:SOFT_ANSWERS",),
    sample="ipu_models_vision.samples:with_regions",
)

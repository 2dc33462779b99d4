# SPDX-License-Identifier: Apache-2.0
"""NLLB-MoE: every class transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bart import LAYOUT
from .m2m_100 import TINY

NLLB_MOE = Family(
    model_type="nllb-moe",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=("NllbMoeModel", "NllbMoeForConditionalGeneration"),
    tiny={
        **TINY,
        "num_experts": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "expert_capacity": 64,
        "moe_token_dropout": 0.0,
        # Every expert runs here, and draws; upstream only those with tokens do.
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    },
    edits=("ipu_models_seq2seq.experts_static:NLLB_MOE_EDITS",),
)

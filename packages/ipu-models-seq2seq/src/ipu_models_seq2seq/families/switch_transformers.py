# SPDX-License-Identifier: Apache-2.0
"""Switch Transformers: every class transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .t5 import LAYOUT

SWITCH_TRANSFORMERS = Family(
    model_type="switch_transformers",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=("SwitchTransformersModel", "SwitchTransformersForConditionalGeneration", "SwitchTransformersEncoderModel"),
    tiny={
        "vocab_size": 99,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "num_heads": 4,
        "num_experts": 4,
        "expert_capacity": 64,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.0,
    },
    edits=("ipu_models_seq2seq.experts_static:SWITCH_EDITS",),
)

# SPDX-License-Identifier: Apache-2.0
"""LED: every class transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bart import LAYOUT
from .m2m_100 import TINY

LED = Family(
    model_type="led",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=("LEDModel", "LEDForConditionalGeneration", "LEDForQuestionAnswering"),
    tiny={
        **TINY,
        "attention_window": 8,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    edits=("ipu_models_seq2seq.led_static:EDITS",),
    checks=("ipu_models_seq2seq.led_static:checked",),
    sample="ipu_models_seq2seq.led_static:with_global_attention",
)

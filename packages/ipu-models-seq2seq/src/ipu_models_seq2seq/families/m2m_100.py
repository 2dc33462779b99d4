# SPDX-License-Identifier: Apache-2.0
"""M2M-100: every class transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from . import bart

TINY = {
    **bart.TINY,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}

M2M_100 = Family(
    model_type="m2m_100",
    package="ipu_models_seq2seq",
    layout=bart.LAYOUT,
    models=("M2M100Model", "M2M100ForConditionalGeneration"),
    tiny=TINY,
    edits=("ipu_models_seq2seq.edits:M2M_100",),
)

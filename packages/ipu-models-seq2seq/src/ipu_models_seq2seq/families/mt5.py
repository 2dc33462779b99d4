# SPDX-License-Identifier: Apache-2.0
"""mT5: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .t5 import LAYOUT, TINY

MT5 = Family(
    model_type="mt5",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=(
        "MT5Model",
        "MT5EncoderModel",
        "MT5ForConditionalGeneration",
        "MT5ForSequenceClassification",
        "MT5ForTokenClassification",
        "MT5ForQuestionAnswering",
    ),
    tiny=TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END",),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

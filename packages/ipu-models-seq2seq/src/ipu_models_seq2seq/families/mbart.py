# SPDX-License-Identifier: Apache-2.0
"""mBART: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .bart import LAYOUT, TINY

MBART = Family(
    model_type="mbart",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=(
        "MBartModel",
        "MBartForConditionalGeneration",
        "MBartForCausalLM",
        "MBartForSequenceClassification",
        "MBartForQuestionAnswering",
    ),
    tiny=TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END", "ipu_models_seq2seq.edits:MBART"),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

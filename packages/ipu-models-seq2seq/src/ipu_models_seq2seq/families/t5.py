# SPDX-License-Identifier: Apache-2.0
"""T5: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

LAYOUT = (
    "shared",
    "encoder.embed_tokens",
    "encoder.block.*",
    "encoder.final_layer_norm",
    "decoder.embed_tokens",
    "decoder.block.*",
    "decoder.final_layer_norm",
)
TINY = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}

T5 = Family(
    model_type="t5",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=(
        "T5Model",
        "T5EncoderModel",
        "T5ForConditionalGeneration",
        "T5ForSequenceClassification",
        "T5ForTokenClassification",
        "T5ForQuestionAnswering",
    ),
    tiny=TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END",),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

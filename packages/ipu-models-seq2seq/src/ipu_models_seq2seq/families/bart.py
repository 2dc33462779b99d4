# SPDX-License-Identifier: Apache-2.0
"""BART: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

LAYOUT = (
    "shared",
    "encoder.embed_tokens",
    "encoder.embed_positions",
    "encoder.layernorm_embedding",
    "encoder.layers.*",
    "encoder.layer_norm",
    "decoder.embed_tokens",
    "decoder.embed_positions",
    "decoder.layernorm_embedding",
    "decoder.layers.*",
    "decoder.layer_norm",
)
TINY = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

BART = Family(
    model_type="bart",
    package="ipu_models_seq2seq",
    layout=LAYOUT,
    models=(
        "BartModel",
        "BartForConditionalGeneration",
        "BartForCausalLM",
        "BartForSequenceClassification",
        "BartForQuestionAnswering",
    ),
    tiny=TINY,
    edits=("ipu_models_seq2seq.pooling:LAST_END", "ipu_models_seq2seq.edits:BART"),
    checks=("ipu_models_seq2seq.pooling:equal_ends",),
)

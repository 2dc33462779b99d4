# SPDX-License-Identifier: Apache-2.0
"""ProphetNet: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

PROPHETNET = Family(
    model_type="prophetnet",
    package="ipu_models_seq2seq",
    layout=(
        "word_embeddings",
        "position_embeddings",
        "embeddings_layer_norm",
        "ngram_embeddings",
        "layers.*",
        "encoder.word_embeddings",
        "encoder.position_embeddings",
        "encoder.embeddings_layer_norm",
        "encoder.layers.*",
        "decoder.word_embeddings",
        "decoder.position_embeddings",
        "decoder.ngram_embeddings",
        "decoder.embeddings_layer_norm",
        "decoder.layers.*",
    ),
    models=(
        "ProphetNetModel",
        "ProphetNetEncoder",
        "ProphetNetDecoder",
        "ProphetNetForConditionalGeneration",
        "ProphetNetForCausalLM",
    ),
    tiny={
        "vocab_size": 99,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
    },
    edits=("ipu_models_seq2seq.prophetnet_static:LABELS_ASKED_BEFORE",),
    checks=("ipu_models_seq2seq.prophetnet_static:positive_labels",),
)

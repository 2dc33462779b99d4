# SPDX-License-Identifier: Apache-2.0
"""The families of this package that become static graphs by source edits."""

from __future__ import annotations

from ipu_core import Family, pipelined_in

TINY = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
STACKS = (
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

M2M_100 = Family(
    model_type="m2m_100",
    layout=STACKS,
    models=pipelined_in("ipu_models_seq2seq.m2m_100", "M2M100Model", "M2M100ForConditionalGeneration"),
    tiny=TINY,
    edits=("ipu_models_seq2seq.edits:M2M_100",),
)

LED = Family(
    model_type="led",
    layout=STACKS,
    models=pipelined_in("ipu_models_seq2seq.led", "LEDModel", "LEDForConditionalGeneration", "LEDForQuestionAnswering"),
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

NLLB_MOE = Family(
    model_type="nllb-moe",
    layout=STACKS,
    models=pipelined_in("ipu_models_seq2seq.nllb_moe", "NllbMoeModel", "NllbMoeForConditionalGeneration"),
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

SWITCH_TRANSFORMERS = Family(
    model_type="switch_transformers",
    layout=(
        "shared",
        "encoder.embed_tokens",
        "encoder.block.*",
        "encoder.final_layer_norm",
        "decoder.embed_tokens",
        "decoder.block.*",
        "decoder.final_layer_norm",
    ),
    models=pipelined_in(
        "ipu_models_seq2seq.switch_transformers",
        "SwitchTransformersModel",
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersEncoderModel",
    ),
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

PROPHETNET = Family(
    model_type="prophetnet",
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
    models=pipelined_in(
        "ipu_models_seq2seq.prophetnet",
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

FAMILIES = (PROPHETNET, M2M_100, LED, NLLB_MOE, SWITCH_TRANSFORMERS)

# SPDX-License-Identifier: Apache-2.0
"""Whisper: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

WHISPER = Family(
    model_type="whisper",
    package="ipu_models_speech",
    layout=(
        "encoder.conv1",
        "encoder.conv2",
        "encoder.embed_positions",
        "encoder.layers.*",
        "encoder.layer_norm",
        "decoder.embed_tokens",
        "decoder.embed_positions",
        "decoder.layers.*",
        "decoder.layer_norm",
    ),
    models=("WhisperModel", "WhisperForConditionalGeneration", "WhisperForCausalLM", "WhisperForAudioClassification"),
    tiny={
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 8,
        "max_source_positions": 16,
        "max_target_positions": 64,
        "vocab_size": 99,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "classifier_proj_size": 16,
    },
    rewrites=("ipu_models_speech.spec_augment:masks_as_inputs",),
    checks=("ipu_models_speech.spec_augment:masks_given",),
    edits=("ipu_models_speech.edits:WHISPER",),
)

# SPDX-License-Identifier: Apache-2.0
"""Wav2Vec2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

LAYOUT = (
    "feature_extractor.conv_layers.*",
    "feature_projection",
    "encoder.pos_conv_embed",
    "encoder.layer_norm",
    "encoder.layers.*",
    "adapter",
)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
    "classifier_proj_size": 16,
    # Upstream draws its masks inside the forward, where no test can compare them.
    "apply_spec_augment": False,
    "layerdrop": 0.0,
}

WAV2VEC2 = Family(
    model_type="wav2vec2",
    package="ipu_models_speech",
    layout=LAYOUT,
    models=(
        "Wav2Vec2Model",
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2ForCTC",
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2ForAudioFrameClassification",
        "Wav2Vec2ForXVector",
    ),
    tiny={
        **TINY,
        "num_codevectors_per_group": 8,
        "codevector_dim": 16,
        "proj_codevector_dim": 16,
        "num_negatives": 3,
        "tdnn_dim": (16, 16, 32),
        "tdnn_kernel": (3, 2, 1),
        "tdnn_dilation": (1, 2, 1),
        "xvector_output_dim": 16,
    },
    rewrites=(
        "ipu_models_speech.pretraining:temperature_as_input",
        "ipu_models_speech.transcription:packed_labels",
        "ipu_models_speech.spec_augment:masks_as_inputs",
    ),
    edits=(
        "ipu_models_speech.edits:WAV2VEC2",
        "ipu_models_speech.pretraining:NEGATIVES",
        "ipu_models_speech.speakers:STATISTICS_OF_FRAMES",
        "ipu_models_speech.transcription:RANGE_ASKED_BEFORE",
    ),
    checks=(
        "ipu_models_speech.pretraining:temperature_given",
        "ipu_models_speech.transcription:labels_in_range",
        "ipu_models_speech.spec_augment:masks_given",
    ),
    sample="ipu_models_speech.samples:for_pretraining",
)

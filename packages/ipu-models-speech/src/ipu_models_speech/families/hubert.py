# SPDX-License-Identifier: Apache-2.0
"""HuBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import Family

from .wav2vec2 import LAYOUT, TINY

HUBERT = Family(
    model_type="hubert",
    package="ipu_models_speech",
    layout=LAYOUT,
    models=("HubertModel", "HubertForCTC", "HubertForSequenceClassification"),
    tiny=TINY,
    rewrites=("ipu_models_speech.transcription:packed_labels", "ipu_models_speech.spec_augment:masks_as_inputs"),
    edits=(
        "ipu_models_speech.edits:HUBERT",
        "ipu_models_speech.transcription:RANGE_ASKED_BEFORE",
    ),
    checks=("ipu_models_speech.transcription:labels_in_range", "ipu_models_speech.spec_augment:masks_given"),
)

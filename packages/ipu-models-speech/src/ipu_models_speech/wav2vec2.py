# SPDX-License-Identifier: Apache-2.0
"""Pipelined Wav2Vec2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
)


class PipelinedWav2Vec2Model(PipelineMixin, Wav2Vec2Model):
    """Wav2Vec2 without a head."""


class PipelinedWav2Vec2ForPreTraining(PipelineMixin, Wav2Vec2ForPreTraining):
    """Wav2Vec2 with the heads it is pre-trained with."""


class PipelinedWav2Vec2ForCTC(PipelineMixin, Wav2Vec2ForCTC):
    """Wav2Vec2 that transcribes speech, by connectionist temporal classification."""


class PipelinedWav2Vec2ForSequenceClassification(PipelineMixin, Wav2Vec2ForSequenceClassification):
    """Wav2Vec2 that classifies sequences, or regresses."""


class PipelinedWav2Vec2ForAudioFrameClassification(PipelineMixin, Wav2Vec2ForAudioFrameClassification):
    """Wav2Vec2 that classifies the frames of a recording."""


class PipelinedWav2Vec2ForXVector(PipelineMixin, Wav2Vec2ForXVector):
    """Wav2Vec2 that tells speakers apart."""

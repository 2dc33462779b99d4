# SPDX-License-Identifier: Apache-2.0
"""Written by `ipu stub ipu_models_speech`."""

from ipu_core import PipelineMixin
from transformers import (
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
    WhisperForAudioClassification,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperModel,
)

class PipelinedHubertForCTC(PipelineMixin, HubertForCTC):
    """`HubertForCTC` of the family `hubert`, pipelined."""

class PipelinedHubertForSequenceClassification(PipelineMixin, HubertForSequenceClassification):
    """`HubertForSequenceClassification` of the family `hubert`, pipelined."""

class PipelinedHubertModel(PipelineMixin, HubertModel):
    """`HubertModel` of the family `hubert`, pipelined."""

class PipelinedWav2Vec2ForAudioFrameClassification(PipelineMixin, Wav2Vec2ForAudioFrameClassification):
    """`Wav2Vec2ForAudioFrameClassification` of the family `wav2vec2`, pipelined."""

class PipelinedWav2Vec2ForCTC(PipelineMixin, Wav2Vec2ForCTC):
    """`Wav2Vec2ForCTC` of the family `wav2vec2`, pipelined."""

class PipelinedWav2Vec2ForPreTraining(PipelineMixin, Wav2Vec2ForPreTraining):
    """`Wav2Vec2ForPreTraining` of the family `wav2vec2`, pipelined."""

class PipelinedWav2Vec2ForSequenceClassification(PipelineMixin, Wav2Vec2ForSequenceClassification):
    """`Wav2Vec2ForSequenceClassification` of the family `wav2vec2`, pipelined."""

class PipelinedWav2Vec2ForXVector(PipelineMixin, Wav2Vec2ForXVector):
    """`Wav2Vec2ForXVector` of the family `wav2vec2`, pipelined."""

class PipelinedWav2Vec2Model(PipelineMixin, Wav2Vec2Model):
    """`Wav2Vec2Model` of the family `wav2vec2`, pipelined."""

class PipelinedWhisperForAudioClassification(PipelineMixin, WhisperForAudioClassification):
    """`WhisperForAudioClassification` of the family `whisper`, pipelined."""

class PipelinedWhisperForCausalLM(PipelineMixin, WhisperForCausalLM):
    """`WhisperForCausalLM` of the family `whisper`, pipelined."""

class PipelinedWhisperForConditionalGeneration(PipelineMixin, WhisperForConditionalGeneration):
    """`WhisperForConditionalGeneration` of the family `whisper`, pipelined."""

class PipelinedWhisperModel(PipelineMixin, WhisperModel):
    """`WhisperModel` of the family `whisper`, pipelined."""

# SPDX-License-Identifier: Apache-2.0
"""Pipelined Whisper: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    WhisperForAudioClassification,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperModel,
)


class PipelinedWhisperModel(PipelineMixin, WhisperModel):
    """Whisper without a head."""


class PipelinedWhisperForConditionalGeneration(PipelineMixin, WhisperForConditionalGeneration):
    """Whisper that writes one sequence for another."""


class PipelinedWhisperForCausalLM(PipelineMixin, WhisperForCausalLM):
    """Whisper as a causal language model."""


class PipelinedWhisperForAudioClassification(PipelineMixin, WhisperForAudioClassification):
    """Whisper that classifies recordings."""

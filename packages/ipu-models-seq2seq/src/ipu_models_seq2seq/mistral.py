# SPDX-License-Identifier: Apache-2.0
"""Pipelined Mistral: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    MistralForCausalLM,
    MistralForQuestionAnswering,
    MistralForSequenceClassification,
    MistralForTokenClassification,
    MistralModel,
)


class PipelinedMistralModel(PipelineMixin, MistralModel):
    """Mistral without a head."""


class PipelinedMistralForCausalLM(PipelineMixin, MistralForCausalLM):
    """Mistral as a causal language model."""


class PipelinedMistralForSequenceClassification(PipelineMixin, MistralForSequenceClassification):
    """Mistral that classifies sequences, or regresses."""


class PipelinedMistralForTokenClassification(PipelineMixin, MistralForTokenClassification):
    """Mistral that classifies tokens."""


class PipelinedMistralForQuestionAnswering(PipelineMixin, MistralForQuestionAnswering):
    """Mistral that finds the span of an answer."""

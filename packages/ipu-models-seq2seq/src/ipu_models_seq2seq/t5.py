# SPDX-License-Identifier: Apache-2.0
"""Pipelined T5: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    T5Model,
)


class PipelinedT5Model(PipelineMixin, T5Model):
    """T5 without a head."""


class PipelinedT5EncoderModel(PipelineMixin, T5EncoderModel):
    """T5's encoder without a head."""


class PipelinedT5ForConditionalGeneration(PipelineMixin, T5ForConditionalGeneration):
    """T5 that writes one sequence for another."""


class PipelinedT5ForSequenceClassification(PipelineMixin, T5ForSequenceClassification):
    """T5 that classifies sequences, or regresses."""


class PipelinedT5ForTokenClassification(PipelineMixin, T5ForTokenClassification):
    """T5 that classifies tokens."""


class PipelinedT5ForQuestionAnswering(PipelineMixin, T5ForQuestionAnswering):
    """T5 that finds the span of an answer."""

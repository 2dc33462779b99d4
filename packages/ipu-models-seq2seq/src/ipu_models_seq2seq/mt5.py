# SPDX-License-Identifier: Apache-2.0
"""Pipelined mT5: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    MT5ForQuestionAnswering,
    MT5ForSequenceClassification,
    MT5ForTokenClassification,
    MT5Model,
)


class PipelinedMT5Model(PipelineMixin, MT5Model):
    """mT5 without a head."""


class PipelinedMT5EncoderModel(PipelineMixin, MT5EncoderModel):
    """mT5's encoder without a head."""


class PipelinedMT5ForConditionalGeneration(PipelineMixin, MT5ForConditionalGeneration):
    """mT5 that writes one sequence for another."""


class PipelinedMT5ForSequenceClassification(PipelineMixin, MT5ForSequenceClassification):
    """mT5 that classifies sequences, or regresses."""


class PipelinedMT5ForTokenClassification(PipelineMixin, MT5ForTokenClassification):
    """mT5 that classifies tokens."""


class PipelinedMT5ForQuestionAnswering(PipelineMixin, MT5ForQuestionAnswering):
    """mT5 that finds the span of an answer."""

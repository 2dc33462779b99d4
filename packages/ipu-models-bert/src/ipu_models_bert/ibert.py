# SPDX-License-Identifier: Apache-2.0
"""Pipelined I-BERT: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    IBertForMaskedLM,
    IBertForMultipleChoice,
    IBertForQuestionAnswering,
    IBertForSequenceClassification,
    IBertForTokenClassification,
    IBertModel,
)


class PipelinedIBertModel(PipelineMixin, IBertModel):
    """I-BERT without a head."""


class PipelinedIBertForMaskedLM(PipelineMixin, IBertForMaskedLM):
    """I-BERT with the masked-language head, tied to the embedding."""


class PipelinedIBertForSequenceClassification(PipelineMixin, IBertForSequenceClassification):
    """I-BERT that classifies sequences."""


class PipelinedIBertForMultipleChoice(PipelineMixin, IBertForMultipleChoice):
    """I-BERT that chooses among alternatives."""


class PipelinedIBertForTokenClassification(PipelineMixin, IBertForTokenClassification):
    """I-BERT that classifies tokens."""


class PipelinedIBertForQuestionAnswering(PipelineMixin, IBertForQuestionAnswering):
    """I-BERT that finds the span of an answer."""

# SPDX-License-Identifier: Apache-2.0
"""Pipelined DistilBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)


class PipelinedDistilBertModel(PipelineMixin, DistilBertModel):
    """DistilBERT without a head."""


class PipelinedDistilBertForMaskedLM(PipelineMixin, DistilBertForMaskedLM):
    """DistilBERT with the masked-language head."""


class PipelinedDistilBertForSequenceClassification(PipelineMixin, DistilBertForSequenceClassification):
    """DistilBERT that classifies sequences, or regresses."""


class PipelinedDistilBertForMultipleChoice(PipelineMixin, DistilBertForMultipleChoice):
    """DistilBERT that chooses among alternatives."""


class PipelinedDistilBertForTokenClassification(PipelineMixin, DistilBertForTokenClassification):
    """DistilBERT that classifies tokens."""


class PipelinedDistilBertForQuestionAnswering(PipelineMixin, DistilBertForQuestionAnswering):
    """DistilBERT that finds the span of an answer."""

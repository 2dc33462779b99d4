# SPDX-License-Identifier: Apache-2.0
"""Pipelined BERT: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
)


class PipelinedBertModel(PipelineMixin, BertModel):
    """BERT without a head."""


class PipelinedBertForPreTraining(PipelineMixin, BertForPreTraining):
    """BERT with the masked-language and the next-sentence heads."""


class PipelinedBertForMaskedLM(PipelineMixin, BertForMaskedLM):
    """BERT with the masked-language head, tied to the embedding."""


class PipelinedBertLMHeadModel(PipelineMixin, BertLMHeadModel):
    """BERT as a causal language model, its head tied to the embedding."""


class PipelinedBertForNextSentencePrediction(PipelineMixin, BertForNextSentencePrediction):
    """BERT with the next-sentence head."""


class PipelinedBertForSequenceClassification(PipelineMixin, BertForSequenceClassification):
    """BERT that classifies sequences, or regresses."""


class PipelinedBertForMultipleChoice(PipelineMixin, BertForMultipleChoice):
    """BERT that chooses among alternatives."""


class PipelinedBertForTokenClassification(PipelineMixin, BertForTokenClassification):
    """BERT that classifies tokens."""


class PipelinedBertForQuestionAnswering(PipelineMixin, BertForQuestionAnswering):
    """BERT that finds the span of an answer."""

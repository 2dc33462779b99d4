# SPDX-License-Identifier: Apache-2.0
"""Pipelined DeBERTa v2: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
)


class PipelinedDebertaV2Model(PipelineMixin, DebertaV2Model):
    """DeBERTa v2 without a head."""


class PipelinedDebertaV2ForMaskedLM(PipelineMixin, DebertaV2ForMaskedLM):
    """DeBERTa v2 with the masked-language head."""


class PipelinedDebertaV2ForSequenceClassification(PipelineMixin, DebertaV2ForSequenceClassification):
    """DeBERTa v2 that classifies sequences, or regresses."""


class PipelinedDebertaV2ForMultipleChoice(PipelineMixin, DebertaV2ForMultipleChoice):
    """DeBERTa v2 that chooses among alternatives."""


class PipelinedDebertaV2ForTokenClassification(PipelineMixin, DebertaV2ForTokenClassification):
    """DeBERTa v2 that classifies tokens."""


class PipelinedDebertaV2ForQuestionAnswering(PipelineMixin, DebertaV2ForQuestionAnswering):
    """DeBERTa v2 that finds the span of an answer."""

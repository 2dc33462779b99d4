# SPDX-License-Identifier: Apache-2.0
"""Pipelined DeBERTa: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    DebertaForMaskedLM,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    DebertaModel,
)


class PipelinedDebertaModel(PipelineMixin, DebertaModel):
    """DeBERTa without a head."""


class PipelinedDebertaForMaskedLM(PipelineMixin, DebertaForMaskedLM):
    """DeBERTa with the masked-language head."""


class PipelinedDebertaForSequenceClassification(PipelineMixin, DebertaForSequenceClassification):
    """DeBERTa that classifies sequences, or regresses."""


class PipelinedDebertaForTokenClassification(PipelineMixin, DebertaForTokenClassification):
    """DeBERTa that classifies tokens."""


class PipelinedDebertaForQuestionAnswering(PipelineMixin, DebertaForQuestionAnswering):
    """DeBERTa that finds the span of an answer."""

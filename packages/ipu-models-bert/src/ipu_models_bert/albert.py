# SPDX-License-Identifier: Apache-2.0
"""Pipelined ALBERT: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    AlbertForMaskedLM,
    AlbertForMultipleChoice,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
)


class PipelinedAlbertModel(PipelineMixin, AlbertModel):
    """ALBERT without a head."""


class PipelinedAlbertForPreTraining(PipelineMixin, AlbertForPreTraining):
    """ALBERT with the heads it is pre-trained with."""


class PipelinedAlbertForMaskedLM(PipelineMixin, AlbertForMaskedLM):
    """ALBERT with the masked-language head."""


class PipelinedAlbertForSequenceClassification(PipelineMixin, AlbertForSequenceClassification):
    """ALBERT that classifies sequences, or regresses."""


class PipelinedAlbertForMultipleChoice(PipelineMixin, AlbertForMultipleChoice):
    """ALBERT that chooses among alternatives."""


class PipelinedAlbertForTokenClassification(PipelineMixin, AlbertForTokenClassification):
    """ALBERT that classifies tokens."""


class PipelinedAlbertForQuestionAnswering(PipelineMixin, AlbertForQuestionAnswering):
    """ALBERT that finds the span of an answer."""

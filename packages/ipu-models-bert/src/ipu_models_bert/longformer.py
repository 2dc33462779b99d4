# SPDX-License-Identifier: Apache-2.0
"""Pipelined Longformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)


class PipelinedLongformerModel(PipelineMixin, LongformerModel):
    """Longformer without a head."""


class PipelinedLongformerForMaskedLM(PipelineMixin, LongformerForMaskedLM):
    """Longformer with the masked-language head, tied to the embedding."""


class PipelinedLongformerForSequenceClassification(PipelineMixin, LongformerForSequenceClassification):
    """Longformer that classifies sequences; its first token attends globally."""


class PipelinedLongformerForMultipleChoice(PipelineMixin, LongformerForMultipleChoice):
    """Longformer that chooses among alternatives; what follows the question attends globally."""


class PipelinedLongformerForTokenClassification(PipelineMixin, LongformerForTokenClassification):
    """Longformer that classifies tokens."""


class PipelinedLongformerForQuestionAnswering(PipelineMixin, LongformerForQuestionAnswering):
    """Longformer that finds the span of an answer; the question attends globally."""

# SPDX-License-Identifier: Apache-2.0
"""Pipelined Nystroemformer: the encoder and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    NystromformerForMaskedLM,
    NystromformerForMultipleChoice,
    NystromformerForQuestionAnswering,
    NystromformerForSequenceClassification,
    NystromformerForTokenClassification,
    NystromformerModel,
)


class PipelinedNystromformerModel(PipelineMixin, NystromformerModel):
    """Nystroemformer without a head."""


class PipelinedNystromformerForMaskedLM(PipelineMixin, NystromformerForMaskedLM):
    """Nystroemformer with the masked-language head, tied to the embedding."""


class PipelinedNystromformerForSequenceClassification(PipelineMixin, NystromformerForSequenceClassification):
    """Nystroemformer that classifies sequences."""


class PipelinedNystromformerForMultipleChoice(PipelineMixin, NystromformerForMultipleChoice):
    """Nystroemformer that chooses among alternatives."""


class PipelinedNystromformerForTokenClassification(PipelineMixin, NystromformerForTokenClassification):
    """Nystroemformer that classifies tokens."""


class PipelinedNystromformerForQuestionAnswering(PipelineMixin, NystromformerForQuestionAnswering):
    """Nystroemformer that finds the span of an answer."""

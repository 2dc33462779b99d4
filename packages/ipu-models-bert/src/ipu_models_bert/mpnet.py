# SPDX-License-Identifier: Apache-2.0
"""Pipelined MPNet: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
)


class PipelinedMPNetModel(PipelineMixin, MPNetModel):
    """MPNet without a head."""


class PipelinedMPNetForMaskedLM(PipelineMixin, MPNetForMaskedLM):
    """MPNet with the masked-language head."""


class PipelinedMPNetForSequenceClassification(PipelineMixin, MPNetForSequenceClassification):
    """MPNet that classifies sequences, or regresses."""


class PipelinedMPNetForMultipleChoice(PipelineMixin, MPNetForMultipleChoice):
    """MPNet that chooses among alternatives."""


class PipelinedMPNetForTokenClassification(PipelineMixin, MPNetForTokenClassification):
    """MPNet that classifies tokens."""


class PipelinedMPNetForQuestionAnswering(PipelineMixin, MPNetForQuestionAnswering):
    """MPNet that finds the span of an answer."""

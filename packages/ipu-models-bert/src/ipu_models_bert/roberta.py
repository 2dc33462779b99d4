# SPDX-License-Identifier: Apache-2.0
"""Pipelined RoBERTa: the model and every task head transformers has for it."""

from __future__ import annotations

from ipu_core import PipelineMixin
from transformers import (
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)


class PipelinedRobertaModel(PipelineMixin, RobertaModel):
    """RoBERTa without a head."""


class PipelinedRobertaForMaskedLM(PipelineMixin, RobertaForMaskedLM):
    """RoBERTa with the masked-language head."""


class PipelinedRobertaForCausalLM(PipelineMixin, RobertaForCausalLM):
    """RoBERTa as a causal language model."""


class PipelinedRobertaForSequenceClassification(PipelineMixin, RobertaForSequenceClassification):
    """RoBERTa that classifies sequences, or regresses."""


class PipelinedRobertaForMultipleChoice(PipelineMixin, RobertaForMultipleChoice):
    """RoBERTa that chooses among alternatives."""


class PipelinedRobertaForTokenClassification(PipelineMixin, RobertaForTokenClassification):
    """RoBERTa that classifies tokens."""


class PipelinedRobertaForQuestionAnswering(PipelineMixin, RobertaForQuestionAnswering):
    """RoBERTa that finds the span of an answer."""
